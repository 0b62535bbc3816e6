"""Run a decoder's layers on the tokens of a batch alone, none of its padding.

Norms, matrices and activations treat each token by itself, so they take all tokens of a batch as
one sequence without gaps. Attention alone has to know whose token is whose: around it queries, keys
and values are spread to padded sequences, and what comes out is taken back.

Texts differ in length: of captions as COCO's an eighth to a sixth of a padded batch is padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gapinit.backbones.last_layer import Rows

NAME = "gapinit_padding_free"
_Moves = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Places:
    """Some of `count` places that rows can be taken from, or spread to."""

    place: Tensor
    """(rows,) int64, ascending."""
    source: Tensor
    """(count,) int64: the row that belongs there; any where none does."""
    empty: Tensor
    """(count - rows,) int64: where none does."""

    @classmethod
    def of(cls, marked: Tensor) -> Places:
        """Return the places that are set in `marked`, (count,) bool."""
        return cls(
            marked.nonzero()[:, 0],
            (marked.cumsum(0) - 1).clamp(min=0),
            (~marked).nonzero()[:, 0],
        )

    def take(self, all_rows: Tensor) -> Tensor:
        """Return the rows at these places, (rows, k), of (count, k)."""
        found: Tensor = _Move.apply(all_rows, (self.place, None), (self.source, self.empty))
        return found

    def spread(self, rows: Tensor) -> Tensor:
        """Return (count, k) with the rows at their places and zeros elsewhere."""
        found: Tensor = _Move.apply(rows, (self.source, self.empty), (self.place, None))
        return found


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch stand: in one sequence without padding, and in padded ones."""

    valid: Tensor
    """(n, width) bool: the padded sequences' tokens."""
    places: Places

    @classmethod
    def of(cls, valid: Tensor) -> Layout:
        """Return the layout of the positions that are set in `valid`, (n, width)."""
        return cls(valid, Places.of(valid.flatten()))

    def __len__(self) -> int:
        return len(self.places.place)

    def flat(self, padded: Tensor) -> Tensor:
        """Return (n, width, k) as (1, tokens, k)."""
        return self.places.take(padded.reshape(-1, padded.shape[-1]))[None]

    def padded(self, flat: Tensor) -> Tensor:
        """Return (1, tokens, k) as (n, width, k), padding zero."""
        return self.places.spread(flat[0]).view(*self.valid.shape, -1)


@dataclass(frozen=True)
class FlatRows(Rows):
    """Some positions of each sequence, asked of states without padding."""

    width: int
    places: Places
    """Of the tokens of all sequences."""

    @classmethod
    def among(cls, rows: Rows, where: Tensor, tokens: Layout) -> FlatRows:
        """Return the rows of `where`, (n, width) bool, among a batch's tokens."""
        places = Places.of(where[tokens.valid])
        return cls(rows.position, rows.valid, where.shape[1], places)

    def take(self, states: Tensor) -> Tensor:
        """Return the rows of (1, tokens, k), as (1, positions, k)."""
        return self.places.take(states[0])[None]

    def mask(self, given: Tensor | None, width: int, eager: torch.dtype | None) -> Tensor:
        """Return the attention mask of the padded positions, as `Rows` does."""
        return Rows(self.position, self.valid).mask(given, self.width, eager)


@dataclass(frozen=True)
class _Pass:
    tokens: Layout
    rows: Layout

    def layout(self, count: int) -> Layout:
        """Return the layout of `count` rows: of all tokens, or of the last layer's positions."""
        # Where every token is asked for, both are the same.
        return self.tokens if count == len(self.tokens) else self.rows


_passes: list[_Pass] = []


@contextmanager
def without_padding(config: Any, tokens: Layout, rows: Layout) -> Iterator[None]:
    """Let the decoder of `config` take batches of this layout, its last layer those of `rows`."""
    before = config._attn_implementation
    config._attn_implementation = NAME
    _passes.append(_Pass(tokens, rows))
    try:
        yield
    finally:
        _passes.pop()
        config._attn_implementation = before


def layout_of(states: Tensor) -> Layout | None:
    """Return how (..., k) is padded to sequences; None: it is, since no such pass is running."""
    return _passes[-1].layout(states.shape[:-1].numel()) if _passes else None


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **named: Any,
) -> tuple[Tensor, None]:
    """Attend in padded sequences; (1, heads, tokens, d_head) in, (1, tokens, heads, d_head) out."""
    asked = _passes[-1].layout(query.shape[2])
    tokens = _passes[-1].tokens
    output, _ = sdpa_attention_forward(
        module,
        _heads(query, asked),
        _heads(key, tokens),
        _heads(value, tokens),
        attention_mask,
        **named,
    )
    flat = asked.flat(output.flatten(2))
    return flat.view(*flat.shape[:2], *output.shape[2:]), None


def _heads(states: Tensor, layout: Layout) -> Tensor:
    heads, d_head = states.shape[1], states.shape[3]
    padded = layout.padded(states.transpose(1, 2).flatten(2))
    return padded.view(*padded.shape[:2], heads, d_head).transpose(1, 2)


class _Move(torch.autograd.Function):
    """Rows taken to other places, all of them different, so that gradients need no addition.

    `there`: the row for each place, and the places without one; `back`: the same for gradients.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: _Moves, back: _Moves) -> Tensor:
        ctx.back = back
        return _moved(rows, *there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _moved(gradients[0], *ctx.back), None, None


def _moved(rows: Tensor, source: Tensor, empty: Tensor | None) -> Tensor:
    if empty is None:
        return rows.index_select(0, source)
    # On a CPU four to ten times as fast as index_copy_ into zeros, which runs on one thread.
    if not len(rows):
        return rows.new_zeros(len(source), rows.shape[-1])
    return rows.index_select(0, source).index_fill_(0, empty, 0.0)


AttentionInterface.register(NAME, _attention)
