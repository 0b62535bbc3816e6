"""Gradients of the frozen weights on one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from gapinit.backbones.tail import tail_loss

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
