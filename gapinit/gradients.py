"""Gradients of the frozen weights, and how much of them lies along a direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from gapinit.adapters import gap_direction, layer_of
from gapinit.tail import tail_loss

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone

Measured = TypeVar("Measured")


def over_gradients(
    backbone: Backbone,
    layers: Sequence[int],
    batch: Mapping[str, Any],
    measure: Callable[[str, Tensor], Measured],
    *,
    vision: bool = False,
) -> dict[str, Measured]:
    """Return what `measure` makes of each target weight's gradient on one batch, by module name.

    It is called with the module's name and the gradient, (d_out, d_in), of the backbone as it is,
    without an adapter: what full fine-tuning's first step would be. `vision`: of the vision tower's
    targets, too. Each gradient is dropped
    before the next one is made, so that no more than one is in memory.
    """
    found: dict[str, Measured] = {}
    targets = backbone.named_targets(layers, vision=vision)
    weights = {name: module.weight for name, module in targets.items()}

    def take(name: str, weight: Tensor) -> None:
        assert weight.grad is not None, "this hook is called when there is one"
        found[name] = measure(name, weight.grad)
        weight.grad = None

    handles = []
    for name, weight in weights.items():
        weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(partial(take, name)))
    try:
        with torch.enable_grad():
            tail_loss(backbone, batch).backward()
    finally:
        for handle, weight in zip(handles, weights.values(), strict=True):
            handle.remove()
            weight.requires_grad_(False)
            weight.grad = None
    return {name: found[name] for name in weights}


def gap_share(
    backbone: Backbone, layers: Sequence[int], batch: Mapping[str, Any], gap: Tensor
) -> float:
    """Return the mean over target weights of their gradient's share along the gap.

    `gap`: (L, d). Of the backbone as it is, so that it is one number for a batch, whatever the
    method.
    """
    modules = backbone.named_targets(layers)

    def share(name: str, gradient: Tensor) -> float:
        direction = gap_direction(gap[layer_of(name)], modules[name].weight, name)
        return gradient_share(gradient, direction)

    shares = over_gradients(backbone, layers, batch, share)
    return sum(shares.values()) / len(shares)


def gradient_share(gradient: Tensor, direction: Tensor) -> float:
    """Return |u^T G|^2 / |G|^2, the share of a gradient that a column u of B sees.

    With A = 0 the first gradient of A is (alpha / r) u^T G, so this is what an adapter along u
    gets of the squared gradient; for a random u its mean is 1 / d_out (paper, Proposition 3.1).
    """
    matrix = gradient.to("cpu", torch.float64)
    total = matrix.square().sum().item()
    # A weight without gradient has none along u either.
    return (direction @ matrix).square().sum().item() / total if total > 0 else 0.0
