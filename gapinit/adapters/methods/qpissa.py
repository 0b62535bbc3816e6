"""QPiSSA: PiSSA whose residual is quantised to 4 bits (Meng et al. 2024).

W0 = (alpha / r) B A + R with the leading singular triplets in B A; the base becomes NF4(R). R lacks
the large triplets, so it is quantised with less error than W0 would be."""

from __future__ import annotations

import torch

from gapinit.adapters.lora import lora_layers
from gapinit.adapters.methods.setup import Adapted, Setup
from gapinit.adapters.nf4 import quantise


@torch.no_grad()
def adapt(setup: Setup) -> Adapted:
    """Add the adapter with PEFT's own initialiser and quantise what it leaves in the base."""
    # ASSUME: one pass; the paper also alternates SVD and quantisation, as LoftQ does.
    model = setup.add_lora("pissa")
    for module in lora_layers(model).values():
        base = module.get_base_layer().weight
        base.copy_(quantise(base.float()))
    return Adapted(model, changes_base=True, saves_base=True)
