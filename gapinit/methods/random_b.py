"""Control: Gap-Init with a random direction in place of the gap.

A = 0 and B a random unit vector: the same zeroed matrix, the same scale, no gap. What Gap-Init
gains over this is what the gap direction itself gives.
"""

from __future__ import annotations

import torch

from gapinit.adapters import add_lora, lora_layers, point, unit
from gapinit.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Add a LoRA and point every module along its own random direction."""
    model = add_lora(
        setup.backbone,
        setup.layers,
        rank=setup.rank,
        alpha=setup.alpha,
        dropout=setup.dropout,
        init_lora_weights=True,
    )
    directions = {
        name: unit(
            torch.randn(layer.out_features, generator=setup.generator, dtype=torch.float64), name
        )
        for name, layer in lora_layers(model).items()
    }
    point(model, directions, setup.generator)
    return Adapted(model)
