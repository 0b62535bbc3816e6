"""What decoding starts from: sequences that all end at the same place, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gapinit.backbones.inputs import Inputs


def placeholder_ids(
    inputs: Inputs,
    head: Sequence[int],
    texts: Sequence[Sequence[int]],
    *,
    image_token_id: int,
    pad_token_id: int,
) -> Tensor:
    """Return each sequence's token ids, (n, width), with placeholders for image tokens."""
    ids = torch.full(inputs.states.shape[:2], pad_token_id)
    for row, text in enumerate(texts):
        seen = int(inputs.prefix_length[row]) - len(head)
        whole = [*head, *[image_token_id] * seen, *text]
        ids[row, : len(whole)] = torch.tensor(whole)
    return ids.to(inputs.states.device)


def left_padded(inputs: Inputs, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return states and token ids that all end where decoding starts, and their mask."""
    width = inputs.states.shape[1]
    # A shorter row moves to the right, its padding to the front.
    position = torch.arange(width, device=ids.device)[None] - (width - inputs.length)[:, None]
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    # What is in front of a row is its own padding, from behind.
    source = torch.where(position >= 0, position, width + position)
    return inputs.states[rows, source], (position >= 0).long(), ids[rows, source]
