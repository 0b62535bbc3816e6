"""Run a decoder's last layer at some positions only.

The last layer's output is used only at positions that predict a token. All other positions need
their keys and values, but no query, no output projection and no MLP. Hooks change the layer for one
pass: its own `forward` runs on the chosen rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gapinit.backbones.inputs import added_mask


@dataclass(frozen=True)
class Rows:
    """Some positions of each sequence, padded to the same number q."""

    position: Tensor
    """(n, q) int64, ascending where valid."""
    valid: Tensor
    """(n, q) bool: False where `position` is padding."""
    width: int
    """Of the padded sequences."""

    @classmethod
    def of(cls, where: Tensor) -> Rows:
        """Return the positions at which `where`, (n, width) bool, is set."""
        counts = where.sum(dim=1)
        most = int(counts.max())
        # A stable sort puts the chosen positions first and keeps their order.
        position = torch.argsort((~where).to(torch.uint8), dim=1, stable=True)[:, :most]
        valid = torch.arange(most, device=where.device)[None] < counts[:, None]
        return cls(position, valid, where.shape[1])

    def take(self, states: Tensor) -> Tensor:
        """Return the rows of (n or 1, width, k), as (n, q, k)."""
        states = states.expand(len(self.position), -1, -1)
        return states.gather(1, self.position[..., None].expand(-1, -1, states.shape[-1]))

    def mask(self, given: Tensor | None, eager: torch.dtype | None) -> Tensor:
        """Return a layer's attention mask for these queries, (n, 1, q, width).

        `given`: the mask of all queries, (n or 1, 1, width, width); None: causal attention.
        `eager`: the dtype of a mask to be added to the scores; None: a mask of bools.
        """
        if given is not None:
            return Rows.take(self, given[:, 0])[:, None]
        key = torch.arange(self.width, device=self.position.device)
        seen = (key <= self.position[..., None])[:, None]
        return seen if eager is None else added_mask(seen, eager)


class Narrowing(Protocol):
    """How to run the last layer of a kind of decoder at some rows only."""

    def __call__(self, layer: Any, rows: Rows, eager: bool) -> AbstractContextManager[None]:
        """Return a context in which the layer returns only `rows`.

        `eager`: the attention adds its mask to the scores and takes no mask of bools.
        """


@contextmanager
def opt_layer(layer: Any, rows: Rows, eager: bool) -> Iterator[None]:
    """Narrow a layer of OPT, whose attention accepts more keys than queries."""
    attention = layer.self_attn
    everything: list[Tensor] = []

    def enter(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        states: Tensor = given[0]
        first = layer.do_layer_norm_before  # true of all published sizes but opt-350m
        everything.append(layer.self_attn_layer_norm(states) if first else states)
        mask = rows.mask(named.get("attention_mask"), states.dtype if eager else None)
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

    The layer reads keys and values of all positions from a stand-in for a cache.
    """

    def enter(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        attention, states = layer.self_attn, given[0]
        cosine, sine = named["position_embeddings"]
        normed = layer.input_layernorm(states)
        shape = (*normed.shape[:-1], -1, attention.head_dim)
        keys = attention.k_proj(normed).view(shape).transpose(1, 2)
        values = attention.v_proj(normed).view(shape).transpose(1, 2)
        if hasattr(attention, "k_norm"):
            keys = attention.k_norm(keys)
        # Each model's module defines its own function of this name.
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        changed: dict[str, Any] = {
            "attention_mask": rows.mask(
                named.get("attention_mask"), states.dtype if eager else None
            ),
            "position_embeddings": (rows.take(cosine), rows.take(sine)),
            "past_key_values": _Given(rotate(keys[:, :1], keys, cosine, sine)[1], values),
        }
        return (rows.take(states),), named | changed

    with layer.register_forward_pre_hook(enter, with_kwargs=True):
        yield


@contextmanager
def cross_layer(layer: Any, rows: Rows, eager: bool) -> Iterator[None]:
    """Narrow a layer of Llama 3.2 Vision, with cross-attention or without."""
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


class _Given:
    """Stands in for a cache that already holds all keys and values."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._held = keys, values

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values of all positions; those of the rows are among them."""
        return self._held
