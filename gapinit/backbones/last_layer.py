"""Run a decoder's last layer at some positions only.

What is behind the last layer is read where a token is to be predicted. Every other position of that
layer gives keys and values, and nothing else of it is needed: no query, no output matrix, no MLP.
A layer is changed for one pass by hooks; its own `forward` runs on the rows that are asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Some positions of each sequence, padded to as many for each."""

    position: Tensor
    """(n, q) int64, ascending where valid."""
    valid: Tensor
    """(n, q) bool: the others are padding."""

    @classmethod
    def of(cls, where: Tensor) -> Rows:
        """Return the positions at which `where`, (n, width) bool, is set."""
        counts = where.sum(dim=1)
        most = int(counts.max())
        # Stable: the chosen positions first, each group in its order.
        position = torch.argsort((~where).to(torch.uint8), dim=1, stable=True)[:, :most]
        return cls(position, torch.arange(most, device=where.device)[None] < counts[:, None])

    def take(self, states: Tensor) -> Tensor:
        """Return the rows of (n or 1, width, k), as (n, q, k)."""
        states = states.expand(len(self.position), -1, -1)
        return states.gather(1, self.position[..., None].expand(-1, -1, states.shape[-1]))

    def mask(self, given: Tensor | None, width: int, eager: torch.dtype | None) -> Tensor:
        """Return a layer's attention mask, (n, 1, q, width), at these queries.

        `given`: the mask of all queries, (n or 1, 1, width, width); None: plain causal attention.
        `eager`: the dtype of a mask that is added to scores, where attention wants that kind.
        """
        if given is not None:
            rows = given.expand(len(self.position), -1, -1, -1)[:, 0]
            return self.take(rows)[:, None]
        key = torch.arange(width, device=self.position.device)
        seen = (key <= self.position[..., None])[:, None]
        if eager is None:
            return seen
        return torch.zeros_like(seen, dtype=eager).masked_fill(~seen, torch.finfo(eager).min)


class Narrowing(Protocol):
    """How a kind of decoder runs its last layer at some rows only."""

    def __call__(self, layer: Any, rows: Rows, eager: bool) -> AbstractContextManager[None]:
        """Return a block in which the layer gives keys and values of all positions, else `rows`.

        `eager`: masks are added to attention scores, and no kernel takes bools.
        """


@contextmanager
def opt_layer(layer: Any, rows: Rows, eager: bool) -> Iterator[None]:
    """Narrow a layer of OPT: its attention takes keys of any number, so they get all states."""
    attention = layer.self_attn
    everything: list[Tensor] = []

    def enter(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        states: Tensor = given[0]
        first = layer.do_layer_norm_before  # of the published ones, all but opt-350m
        everything.append(layer.self_attn_layer_norm(states) if first else states)
        mask = rows.mask(
            named.get("attention_mask"), states.shape[1], states.dtype if eager else None
        )
        return (rows.take(states),), named | {"attention_mask": mask}

    def read_all(_: Any, __: Any) -> Any:
        return (everything[0],)

    with (
        layer.register_forward_pre_hook(enter, with_kwargs=True),
        attention.k_proj.register_forward_pre_hook(read_all),
        attention.v_proj.register_forward_pre_hook(read_all),
    ):
        yield


@contextmanager
def rotary_layer(layer: Any, rows: Rows, eager: bool) -> Iterator[None]:
    """Narrow a layer with rotary positions in Llama's layout (Llama, Qwen2-VL, Gemma 3).

    Keys and values of all positions come to it as from a cache.
    """

    def enter(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        states: Tensor = given[0]
        cosine, sine = named["position_embeddings"]
        keys = _keys_and_values(layer, states, cosine, sine)
        mask = rows.mask(
            named.get("attention_mask"), states.shape[1], states.dtype if eager else None
        )
        changed: dict[str, Any] = {
            "attention_mask": mask,
            "position_embeddings": (rows.take(cosine), rows.take(sine)),
            "past_key_values": _Given(*keys),
        }
        return (rows.take(states),), named | changed

    with layer.register_forward_pre_hook(enter, with_kwargs=True):
        yield


@contextmanager
def cross_layer(layer: Any, rows: Rows, eager: bool) -> Iterator[None]:
    """Narrow a layer of Llama 3.2 Vision that attends to the image, or one that does not."""
    if not hasattr(layer, "cross_attn"):
        with rotary_layer(layer, rows, eager):
            yield
        return

    def enter(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        masks = ("cross_attention_mask", "full_text_row_masked_out_mask")
        taken = {name: rows.take(named[name][:, 0])[:, None] for name in masks if name in named}
        return (rows.take(given[0]),), named | taken

    with layer.register_forward_pre_hook(enter, with_kwargs=True):
        yield


def _keys_and_values(
    layer: Any, states: Tensor, cosine: Tensor, sine: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what the layer's attention makes of all states, (n, heads, width, d_head) each."""
    attention = layer.self_attn
    normed = layer.input_layernorm(states)
    shape = (*normed.shape[:-1], -1, attention.head_dim)
    keys = attention.k_proj(normed).view(shape).transpose(1, 2)
    values = attention.v_proj(normed).view(shape).transpose(1, 2)
    if hasattr(attention, "k_norm"):
        keys = attention.k_norm(keys)
    # Each model's module has a function of this name, and they are not all the same.
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    return rotate(keys[:, :1], keys, cosine, sine)[1], values


class _Given:
    """Stands for a cache that holds all keys and values already."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._held = keys, values

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return what is held; those of the rows are among them."""
        return self._held
