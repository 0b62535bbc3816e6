"""LoRA-GA: A and B from the singular vectors of the first gradient of W0 (Wang et al. 2024).

G = U S V^T; A takes the first r rows of V^T and B the next r columns of U, so that the first step
of A and B together is the rank-2r step nearest to full fine-tuning's. The base keeps W0 less the
adapter, as PiSSA's."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga

from gapinit.adapters.methods.setup import Adapted, Setup
from gapinit.backbones.tail import tail_loss


def adapt(setup: Setup) -> Adapted:
    """Add the adapter with PEFT's own initialiser, run on the first training batch."""

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
