"""Adapter dropout with a random generator of its own for each run."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor, nn

from gapinit.adapters.lora import ADAPTER, lora_layers
from gapinit.backbones.padding_free import layout_of

# Methods draw their directions from a generator with the plain seed.
_OFFSET = 1_000_003


def mask_generator(seed: int, device: torch.device) -> torch.Generator:
    """Return the generator of a run's dropout masks."""
    return torch.Generator(device).manual_seed(seed + _OFFSET)


class RunDropout(nn.Module):
    """Dropout with a run's own generator: other runs of the process do not change its masks."""

    def __init__(self, p: float, generator: torch.Generator) -> None:
        super().__init__()
        self.p = p
        self._generator = generator

    def forward(self, states: Tensor) -> Tensor:
        """Return the states, in training mode with a share p of them zeroed."""
        if not self.training:
            return states
        layout = layout_of(states)
        # The mask has the padded shape, so that it is the same with and without padding.
        shape = states.shape if layout is None else (*layout.valid.shape, states.shape[-1])
        mask = torch.empty(shape, dtype=states.dtype, device=states.device)
        mask = mask.bernoulli_(1 - self.p, generator=self._generator).div_(1 - self.p)
        return states * (mask if layout is None else layout.flat(mask).view_as(states))


def use_own_dropout(model: PeftModel, generator: torch.Generator) -> None:
    """Replace an adapter's dropout in every module by dropout that draws from `generator`."""
    for module in lora_layers(model).values():
        dropout = module.lora_dropout[ADAPTER]
        if isinstance(dropout, nn.Dropout):
            module.lora_dropout[ADAPTER] = RunDropout(dropout.p, generator)
