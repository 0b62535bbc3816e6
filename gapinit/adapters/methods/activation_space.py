"""Methods that start from what the adapted modules read on the first training samples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft import EvaConfig, LoraConfig, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor

from gapinit.adapters.lora import ADAPTER, lora_layers
from gapinit.adapters.methods.setup import CALIBRATION_SAMPLES, Adapted, Setup
from gapinit.backbones.tail import batch_inputs
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone

PADDED = ("states", "labels", "input_ids")
"""What a batch pads to its longest sequence."""


def eva(setup: Setup) -> Adapted:
    """EVA: A from the principal components of a module's inputs, B zero (Paischer et al. 2024).

    PEFT's incremental SVD of the inputs runs until its components settle; then the modules whose
    components explain most get the rank that others lose, at the same total (rho = 2: up to 2 r).
    """
    model = setup.add_lora("eva", eva_config=EvaConfig())
    initialize_lora_eva_weights(
        model,
        setup.batches(CALIBRATION_SAMPLES),
        forward_fn=partial(_forward, setup.backbone),
        prepare_model_inputs_fn=_learned_positions,
        prepare_layer_inputs_fn=partial(_rows_at, setup.backbone),
        show_progress_bar=False,
    )
    # PEFT has shortened the names of the modules to what tells them apart in the tail. In the whole
    # model those would hit modules of the vision tower and of frozen layers: name them in full.
    config: Any = model.peft_config[ADAPTER]
    config.target_modules = "|".join(map(re.escape, lora_layers(model)))
    return Adapted(model)


def _forward(backbone: Backbone, _: object, batch: dict[str, Tensor]) -> None:
    backbone.decode(batch_inputs(backbone, batch))


def _learned_positions(batch: dict[str, Tensor], _: object) -> Tensor:
    """Return which of a batch's positions, in one row, predict a token that is learned.

    ASSUME: EVA leaves out what carries no label; here that is the image, the prompt and padding.
    """
    return (batch["labels"] != -100).flatten()


def _rows_at(backbone: Backbone, layer_input: Any, chosen: Tensor, name: str) -> Tensor:
    # PEFT's own function takes (batch, positions, width) only, but OPT flattens what fc1 reads.
    states: Tensor = layer_input[0]
    rows = states.reshape(-1, states.shape[-1])
    if re.search(backbone.vision_pattern, name):
        return rows  # patches: none of them has a label
    # Where images are read by cross-attention, keys and values have an image's tokens as input.
    return rows[chosen] if len(rows) == len(chosen) else rows


def corda(setup: Setup) -> Adapted:
    """CorDA: A and B from the singular triplets of W0 C, C the covariance of what W0 reads.

    W0 C = U S V^T, and W0 = U S (V^T C^-1): the r largest triplets are trained, the base keeps the
    rest (Yang et al. 2024, the instruction-previewed mode, which adapts to the task at hand). By
    PEFT's own initialiser.
    """

    def run_samples() -> None:
        for batch in setup.batches(CALIBRATION_SAMPLES):
            _require_states(batch)
            for sample in _samples(batch):
                setup.backbone.decode(batch_inputs(setup.backbone, sample))

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
