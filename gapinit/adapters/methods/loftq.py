"""LoftQ: a base quantised to 4 bits, and a LoRA that starts from the error (Li et al. 2023).

Q = NF4(W0 - B A) and B A = the best rank-r approximation of W0 - Q, in turn; here one turn, which
is PEFT's default. Base and adapter together are nearer to W0 than Q alone, but are not W0.
PEFT's own initialiser needs bitsandbytes and moves every weight to a CUDA device, whatever device
the model is on; this one does the same arithmetic anywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from gapinit.adapters.lora import ADAPTER, lora_layers
from gapinit.adapters.methods.setup import Adapted, Setup
from gapinit.adapters.nf4 import quantise

ITERATIONS = 1


@torch.no_grad()
def adapt(setup: Setup) -> Adapted:
    """Add a LoRA, quantise the base, and start A and B from what quantising lost."""
    model = setup.add_lora()
    for module in lora_layers(model).values():
        base = module.get_base_layer().weight
        quantised, weight_a, weight_b = loftq(base.float(), setup.rank, ITERATIONS)
        base.copy_(quantised)
        # ASSUME: the adapter makes up for the error as it is scaled, (alpha / r) B A. PEFT leaves
        # the scale out, so that at alpha = 2 r it would add the correction twice.
        scale = module.scaling[ADAPTER] ** 0.5
        module.lora_A[ADAPTER].weight.copy_(weight_a / scale)
        module.lora_B[ADAPTER].weight.copy_(weight_b / scale)
    return Adapted(model, changes_base=True, saves_base=True)


def loftq(weight: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return Q, A and B with Q + B A near to W0 (Li et al. 2023, Algorithm 1)."""
    remainder = weight
    for _ in range(iterations):
        quantised = quantise(remainder)
        left, values, right = torch.linalg.svd(weight - quantised, full_matrices=False)
        root = values[:rank].sqrt()
        weight_a, weight_b = root[:, None] * right[:rank], left[:, :rank] * root
        remainder = weight - weight_b @ weight_a
    return quantised, weight_a, weight_b
