"""Positions of caption tokens in a sequence, and pooling of states over positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gapinit.backbones.inputs import Inputs

Pooling = Literal["mean", "last"]


def caption_positions(inputs: Inputs, labels: Sequence[Sequence[int]]) -> Tensor:
    """Return the positions of caption tokens (no BOS, template or padding), (n, width) bool.

    `labels`: each text's labels from `encode_captions`, -100 where there is none. A label is the
    next token, so a caption token follows each position that has a label.
    """
    where = torch.zeros(inputs.states.shape[:2], dtype=torch.bool)
    for row, (start, found) in enumerate(zip(inputs.prefix_length.tolist(), labels, strict=True)):
        where[row, start + 1 : start + len(found)] = torch.tensor(found[:-1]) != -100
    return where.to(inputs.states.device)


def pool(states: Tensor, where: Tensor, pooling: Pooling) -> Tensor:
    """Return each sequence's mean state over the positions in `where`, or the last of them.

    `states`: (n, width, d); `where`: (n, width) bool. The result is (n, d) float64: in half
    precision the mean would round the small gap away.
    """
    return pool_sides(states, where[:, None], pooling)[:, 0]


def pool_sides(states: Tensor, where: Tensor, pooling: Pooling) -> Tensor:
    """Pool over k sets of positions, `where` (n, k, width), as `pool` does; return (n, k, d)."""
    if states.device.type == "mps":  # MPS has no float64
        states = states.cpu()
    where = where.to(states.device)
    if pooling == "last":
        position = torch.arange(where.shape[2], device=where.device)
        last = torch.where(where, position, -1).amax(dim=2)
        return states[torch.arange(len(states), device=states.device)[:, None], last].double()
    counted = where.double()
    # The sum is divided, not the weights: 1 / count is not exact.
    return counted @ states.double() / counted.sum(dim=2, keepdim=True)
