"""Dropout of adapters that draws its masks from a generator of the run alone."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor, nn

from gapinit.adapters.lora import ADAPTER, lora_layers
from gapinit.backbones.padding_free import layout_of

# A method draws its directions from a generator of the seed itself.
_OFFSET = 1_000_003


def mask_generator(seed: int, device: torch.device) -> torch.Generator:
    """Return the generator that a run's dropout masks are drawn from."""
    return torch.Generator(device).manual_seed(seed + _OFFSET)


class RunDropout(nn.Module):
    """Dropout that draws from a run's own generator: other runs of the process change no mask."""

    def __init__(self, p: float, generator: torch.Generator) -> None:
        super().__init__()
        self.p = p
        self._generator = generator

    def forward(self, states: Tensor) -> Tensor:
        """Return the states with a share p of them zeroed while training."""
        if not self.training:
            return states
        layout = layout_of(states)
        # Drawn for padded sequences: then a mask does not depend on how padding is left out.
        shape = states.shape if layout is None else (*layout.valid.shape, states.shape[-1])
        mask = torch.empty(shape, dtype=states.dtype, device=states.device)
        mask = mask.bernoulli_(1 - self.p, generator=self._generator).div_(1 - self.p)
        return states * (mask if layout is None else layout.flat(mask).view_as(states))


def use_own_dropout(model: PeftModel, generator: torch.Generator) -> None:
    """Let an adapter's dropout draw from `generator`, module after module."""
    for module in lora_layers(model).values():
        dropout = module.lora_dropout[ADAPTER]
        if isinstance(dropout, nn.Dropout):
            module.lora_dropout[ADAPTER] = RunDropout(dropout.p, generator)
