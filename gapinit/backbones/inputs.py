"""What passes between a backbone's parts: the tokens of images, and the inputs of its decoder.

A sequence is `head` (the template up to the image), the image's tokens, then the text. Head and
image together are the *prefix*: attention is causal, so no text changes them. Sequences of a batch
are padded on the right, where no valid position ever sees the padding.

Where several texts are about one image, they can stand behind one prefix in one sequence
(`packed`): each text then has the positions that follow the prefix, and sees the prefix and itself.
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
    """(images,) int64: how many of them are each image's."""
    grid: Tensor
    """(images, k) int64: what positions depend on, where they do (rows and columns); else k = 0."""

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def equal(cls, tokens: Tensor) -> Images:
        """Return images that have the same number of tokens, from (images, tokens, d)."""
        images, count, width = tokens.shape
        counts = torch.full((images,), count)
        return cls(tokens.reshape(-1, width), counts, torch.zeros(images, 0, dtype=torch.int64))

    def take(self, rows: Sequence[int] | Tensor) -> Images:
        """Return some images, in the order given; one may stand in it several times."""
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        places = ragged(self.counts.cumsum(0)[chosen] - self.counts[chosen], self.counts[chosen])
        return Images(
            self.tokens[places.to(self.tokens.device)], self.counts[chosen], self.grid[chosen]
        )

    def without_tokens(self) -> Images:
        """Return as many images of no token: for text on its own."""
        return Images(self.tokens[:0], torch.zeros_like(self.counts), torch.zeros_like(self.grid))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Images:
        """Return the same with its tokens on a device and in a dtype."""
        return replace(self, tokens=self.tokens.to(device, dtype))


@dataclass(frozen=True)
class Inputs:
    """A batch of sequences for a decoder, padded on the right."""

    states: Tensor
    """(n, width, d)."""
    prefix_length: Tensor
    """(n,) int64: head and image tokens."""
    length: Tensor
    """(n,) int64: those and the text."""
    grid: Tensor
    """(n, k) int64, as in `Images`."""
    memory: Tensor | None = None
    """(n, m, d): image tokens that are read by cross-attention, padded on the right."""
    memory_length: Tensor | None = None
    """(n,) int64."""
    segment: Tensor | None = None
    """(n, width) int64, of packed sequences: 0 in the prefix, 1, 2, ... in its texts, -1 behind."""
    place: Tensor | None = None
    """(n, width) int64, of packed sequences: each token's position behind the prefix alone."""

    @property
    def positions(self) -> Tensor:
        """Return each token's position in its own sequence, (n or 1, width)."""
        if self.place is not None:
            return self.place
        return torch.arange(self.states.shape[1], device=self.states.device)[None]

    def sees(self) -> Tensor:
        """Return which position sees which in packed sequences, (n, width, width) bool.

        Row q, column k: k stands no later than q, in the prefix or in q's own text.
        """
        assert self.segment is not None, "asked of packed sequences only"
        order = torch.arange(self.segment.shape[1], device=self.segment.device)
        own = self.segment[:, :, None] == self.segment[:, None, :]
        return (order[:, None] >= order) & (own | (self.segment == 0)[:, None, :])


def packed(inputs: Inputs, lengths: Sequence[Sequence[int]]) -> Inputs:
    """Return the inputs with each sequence's text told apart into texts of these lengths."""
    segment = torch.full(inputs.states.shape[:2], -1)
    place = torch.zeros_like(segment)
    for row, (prefix, own) in enumerate(zip(inputs.prefix_length.tolist(), lengths, strict=True)):
        segment[row, :prefix] = 0
        # Padding stands behind the image, and is seen by nothing.
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


def padded_places(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return where a padded batch takes its rows from, (n, width), and each row's length (n,).

    Row i is made of the parts in their order; of each part the rows' `starts` and `counts` in one
    flat list are given. Padding is -1.
    """
    lengths = torch.stack([counts for _, counts in parts]).sum(0)
    places = torch.full((len(lengths), int(lengths.max())), -1)
    before = torch.zeros_like(lengths)
    for starts, counts in parts:
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        places[rows, ragged(before, counts)] = ragged(starts, counts)
        before = before + counts
    return places, lengths


def gather(flat: Tensor, places: Tensor) -> Tensor:
    """Return rows of `flat`, (n, width, d), zeros where the place is -1."""
    places = places.to(flat.device)
    taken = flat[places.clamp(min=0)]
    return taken.masked_fill((places < 0)[..., None], 0.0)
