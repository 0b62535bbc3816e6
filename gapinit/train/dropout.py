"""Dropout of adapters whose masks are a run's own, whatever else the process draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn

from gapinit.adapters.lora import ADAPTER, lora_layers
from gapinit.backbones.padding_free import layout_of

# A method draws its directions from a generator of the seed itself.
_OFFSET = 1_000_003


def mask_generator(seed: int, device: torch.device, rank: int = 0) -> torch.Generator:
    """Return the generator that a run's dropout masks are drawn from, on one of its processes."""
    return torch.Generator(device).manual_seed(seed + (rank + 1) * _OFFSET)


def draw_mask(like: Tensor, shape: Sequence[int], p: float, generator: torch.Generator) -> Tensor:
    """Return zeros with probability p and else 1 / (1 - p), in the dtype and place of `like`."""
    mask = torch.empty(shape, dtype=like.dtype, device=like.device)
    return mask.bernoulli_(1 - p, generator=generator).div_(1 - p)


class RunDropout(nn.Module):
    """Dropout that draws from a run's own generator: alone or beside others, the same masks."""

    def __init__(self, p: float, generator: torch.Generator) -> None:
        super().__init__()
        self.p = p
        self._generator = generator

    def forward(self, states: Tensor) -> Tensor:
        """Return the states with a share p of them zeroed while training."""
        if not self.training:
            return states
        layout = layout_of(states)
        if layout is None:
            return states * draw_mask(states, states.shape, self.p, self._generator)
        # Of padded sequences, as when several runs share a pass.
        shape = (*layout.valid.shape, states.shape[-1])
        mask = layout.flat(draw_mask(states, shape, self.p, self._generator))
        return states * mask.view_as(states)


def use_own_dropout(model: PeftModel, generator: torch.Generator) -> None:
    """Let an adapter's dropout draw from `generator`, module after module."""
    for module in lora_layers(model).values():
        dropout = module.lora_dropout[ADAPTER]
        if isinstance(dropout, nn.Dropout):
            module.lora_dropout[ADAPTER] = RunDropout(dropout.p, generator)
