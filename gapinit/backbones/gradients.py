"""Gradients of the frozen weights on one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
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
    """Return `measure(name, gradient)` for each target weight on one batch, by module name.

    The gradient, (d_out, d_in), is that of the backbone without an adapter: the first step of full
    fine-tuning. Each gradient is freed before the next one is computed. `vision`: include the
    vision tower's targets.
    """
    found: dict[str, Measured] = {}
    targets = backbone.named_targets(layers, vision=vision)
    weights = {name: module.weight for name, module in targets.items()}

    def take(name: str, weight: Tensor) -> None:
        assert weight.grad is not None, "the hook runs after the gradient is accumulated"
        found[name] = measure(name, weight.grad)
        weight.grad = None

    with ExitStack() as hooks, torch.enable_grad():
        for name, weight in weights.items():
            hooks.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(True)
            hook = weight.register_post_accumulate_grad_hook(partial(take, name))
            hooks.enter_context(hook)
        tail_loss(backbone, batch).backward()
    return {name: found[name] for name in weights}
