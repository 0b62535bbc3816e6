"""Image tokens, and the inputs of a decoder.

A sequence is `head` (the template up to the image), the image's tokens, then the text. Head and
image together are the *prefix*: attention is causal, so no text changes its states. Batches are
padded on the right, where no valid position attends to the padding.

Several texts of one image can share one prefix in one sequence (`packed`): each text's positions
continue from the prefix, and it attends to the prefix and to itself only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """The tokens of some images in the language model's space, one image after another."""

    tokens: Tensor
    """(tokens of all images, d)."""
    counts: Tensor
    """(images,) int64: how many tokens each image has."""
    grid: Tensor
    """(images, k) int64: what positions or masks depend on (rows, columns); k = 0: nothing."""

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def equal(cls, tokens: Tensor) -> Images:
        """Return images that all have the same number of tokens, from (images, tokens, d)."""
        images, count, width = tokens.shape
        counts = torch.full((images,), count)
        return cls(tokens.reshape(-1, width), counts, torch.zeros(images, 0, dtype=torch.int64))

    def take(self, rows: Sequence[int] | Tensor) -> Images:
        """Return some images in the order given; an image may occur several times."""
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        places = ragged(self.counts.cumsum(0)[chosen] - self.counts[chosen], self.counts[chosen])
        return Images(
            self.tokens[places.to(self.tokens.device)], self.counts[chosen], self.grid[chosen]
        )


@dataclass(frozen=True)
class Inputs:
    """A batch of sequences for a decoder, padded on the right."""

    states: Tensor
    """(n, width, d)."""
    prefix_length: Tensor
    """(n,) int64: tokens of head and image."""
    length: Tensor
    """(n,) int64: tokens of head, image and text."""
    grid: Tensor
    """(n, k) int64, as in `Images`."""
    memory: Tensor | None = None
    """(n, m, d): the image tokens that cross-attention reads, padded on the right."""
    memory_length: Tensor | None = None
    """(n,) int64: tokens of `memory`."""
    segment: Tensor | None = None
    """(n, width) int64, packed sequences only: 0 in the prefix, 1, 2, ... in texts, else -1."""
    place: Tensor | None = None
    """(n, width) int64, packed sequences only: each token's position if its text were alone."""

    @property
    def positions(self) -> Tensor:
        """Return each token's position in its own sequence, (n or 1, width)."""
        if self.place is not None:
            return self.place
        return torch.arange(self.states.shape[1], device=self.states.device)[None]

    def sees(self) -> Tensor:
        """Return which position attends to which in packed sequences, (n, width, width) bool.

        Entry (q, k) is True if k is not behind q, and in the prefix or in q's own text.
        """
        assert self.segment is not None, "the sequences are packed"
        order = torch.arange(self.segment.shape[1], device=self.segment.device)
        own = self.segment[:, :, None] == self.segment[:, None, :]
        return (order[:, None] >= order) & (own | (self.segment == 0)[:, None, :])


def added_mask(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores: 0 where `sees` is True, else the lowest number."""
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return mask.masked_fill_(~sees, torch.finfo(dtype).min)


def packed(inputs: Inputs, lengths: Sequence[Sequence[int]]) -> Inputs:
    """Return the inputs with each sequence's text divided into texts of these lengths."""
    segment = torch.full(inputs.states.shape[:2], -1)
    place = torch.zeros_like(segment)
    for row, (prefix, own) in enumerate(zip(inputs.prefix_length.tolist(), lengths, strict=True)):
        segment[row, :prefix] = 0
        # Padding gets the first position behind the prefix; nothing attends to it.
        place[row] = prefix
        place[row, :prefix] = torch.arange(prefix)
        start = prefix
        for text, length in enumerate(own, start=1):
            segment[row, start : start + length] = text
            place[row, start : start + length] = prefix + torch.arange(length)
            start += length
    device = inputs.states.device
    return replace(inputs, segment=segment.to(device), place=place.to(device))


def ragged(starts: Tensor, counts: Tensor) -> Tensor:
    """Return start, start + 1, ... (`count` of them) for each start, one after another."""
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    within = torch.arange(total) - torch.repeat_interleave(ends - counts, counts)
    return torch.repeat_interleave(starts, counts) + within


def padded_rows(flat: Tensor, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return a padded batch of rows of `flat`, (n, width, d), and each sequence's length, (n,).

    A sequence is its parts one after another. A part is (starts, counts), (n,) each: where its rows
    start in `flat`, and how many there are. Padding is zero.
    """
    lengths = torch.stack([counts for _, counts in parts]).sum(0)
    places = torch.full((len(lengths), int(lengths.max())), -1)
    before = torch.zeros_like(lengths)
    for starts, counts in parts:
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        places[rows, ragged(before, counts)] = ragged(starts, counts)
        before = before + counts
    places = places.to(flat.device)
    taken = flat[places.clamp(min=0)]
    return taken.masked_fill((places < 0)[..., None], 0.0), lengths
