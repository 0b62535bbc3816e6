"""Control: Gap-Init with a random direction in place of the gap.

A = 0 and B a random unit vector: the same zeroed matrix, the same scale, no gap. What Gap-Init
gains over this is what the gap direction itself gives.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor

from gapinit.adapters.lora import lora_layers, point, unit
from gapinit.adapters.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Add a LoRA and point every module along its own random direction."""
    model = setup.add_lora()
    point(model, random_directions(model, setup.generator), setup.generator)
    return Adapted(model)


def random_directions(model: PeftModel, generator: torch.Generator) -> dict[str, Tensor]:
    """Return a random unit vector, (d_out,), for each adapted module."""
    return {
        name: unit(torch.randn(layer.out_features, generator=generator, dtype=torch.float64), name)
        for name, layer in lora_layers(model).items()
    }
