"""Control: B along the top left singular vector of the first gradient of each frozen weight.

With A = 0 the first gradient of A is (alpha / r) b^T G, G the gradient of W0; it is longest for b
the top left singular vector of G. No direction makes a larger first step, the gap's included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gapinit.adapters.lora import in_base, lora_layers, point
from gapinit.adapters.methods.setup import Adapted, Setup
from gapinit.backbones.gradients import over_gradients


def adapt(setup: Setup) -> Adapted:
    """Measure the gradient on the first batch, add a LoRA, point it along the gradient."""
    (batch,) = setup.batches(1)
    found = over_gradients(setup.backbone, setup.layers, batch, _top_left, vision=setup.vision)
    model = setup.add_lora()
    point(model, {name: found[in_base(name)] for name in lora_layers(model)}, setup.generator)
    return Adapted(model)


def _top_left(_: str, gradient: Tensor) -> Tensor:
    left, _, _ = torch.linalg.svd(gradient.double(), full_matrices=False)
    return left[:, 0].cpu()
