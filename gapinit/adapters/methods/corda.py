"""CorDA: A and B from the singular triplets of W0 C, C the covariance of what W0 reads.

W0 C = U S V^T, and W0 = U S (V^T C^-1): the r largest triplets are trained, the base keeps the
rest (Yang et al. 2024, the instruction-previewed mode, which adapts to the task at hand)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor

from gapinit.adapters.methods.setup import CALIBRATION_SAMPLES, Adapted, Setup
from gapinit.backbones.tail import tail_states
from gapinit.errors import GapinitError

PADDED = ("states", "labels", "input_ids")
"""What a batch pads to its longest sequence."""


def adapt(setup: Setup) -> Adapted:
    """Add the adapter with PEFT's own initialiser, run on the first training samples."""

    def run_samples() -> None:
        for batch in setup.batches(CALIBRATION_SAMPLES):
            _require_states(batch)
            for sample in _samples(batch):
                tail_states(setup.backbone, sample)

    def measure(config: LoraConfig) -> None:
        preprocess_corda(setup.backbone.model, config, run_model=run_samples)

    model = setup.add_lora("corda", prepare=measure, corda_config=CordaConfig(corda_method="ipm"))
    return Adapted(model, changes_base=True)


def _require_states(batch: dict[str, Any]) -> None:
    if "states" not in batch:
        raise GapinitError(
            "method 'corda' measures sample by sample on cached states, and this trunk has none "
            "(mode 'off'): adapt decoder layers alone, with `trunk: auto`"
        )


def _samples(batch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield a batch's samples one by one without padding: PEFT takes the covariance of one."""
    for row, labels in enumerate(batch["labels"]):
        # The last position that predicts anything; what follows is padding.
        length = int(torch.nonzero(labels != -100).max()) + 1
        yield {
            name: value[row : row + 1, :length] if name in PADDED else value[row : row + 1]
            for name, value in batch.items()
        }
