"""Methods that start from the gradient of the frozen weights on the first training batch."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor

from gapinit.adapters.initialize import point
from gapinit.adapters.lora import lora_layers
from gapinit.adapters.methods.setup import Adapted, Setup
from gapinit.backbones.gradients import over_gradients
from gapinit.backbones.tail import tail_loss


def lora_ga(setup: Setup) -> Adapted:
    """LoRA-GA: A and B from the singular vectors of the first gradient (Wang et al. 2024).

    G = U S V^T; A takes the first r rows of V^T and B the next r columns of U, so that the first
    step of A and B together is the rank-2r step nearest to full fine-tuning's. The base keeps W0
    less the adapter, as PiSSA's does. By PEFT's own initialiser.
    """

    # ASSUME: one batch of the recipe's size; the paper takes a small sampled batch too.
    def gradient() -> None:
        setup.backbone.model.eval()  # PEFT switches it to training, and OPT's dropout on
        for batch in setup.batches(1):
            # PEFT counts backward passes by hooks, and torch warns of one whose input needs none.
            tail_loss(setup.backbone, _with_gradient(batch)).backward()

    def measure(config: LoraConfig) -> None:
        preprocess_loraga(setup.backbone.model, config, gradient)

    model = setup.add_lora("lora_ga", prepare=measure, lora_ga_config=LoraGAConfig())
    return Adapted(model, changes_base=True)


def _with_gradient(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch with a gradient for what the model's first module reads."""
    if "states" in batch:
        return batch | {"states": batch["states"].clone().requires_grad_()}
    pixels = {
        name: value.clone().requires_grad_() if value.is_floating_point() else value
        for name, value in batch["pixels"].items()
    }
    return batch | {"pixels": pixels}


def gradient(setup: Setup) -> Adapted:
    """Control: B along the top left singular vector of the first gradient of each frozen weight.

    With A = 0 the first gradient of A is (alpha / r) b^T G, G the gradient of W0; it is longest for
    b the top left singular vector of G. No direction makes a larger first step, the gap's included.
    """
    (batch,) = setup.batches(1)
    found = over_gradients(setup.backbone, setup.layers, batch, _top_left, vision=setup.vision)
    model = setup.add_lora()
    point(lora_layers(model), found, setup.generator)
    return Adapted(model)


def _top_left(_: str, gradient: Tensor) -> Tensor:
    left, _, _ = torch.linalg.svd(gradient.double(), full_matrices=False)
    return left[:, 0].cpu()
