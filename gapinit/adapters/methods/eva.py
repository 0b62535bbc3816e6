"""EVA: A from the principal components of what each module reads, B zero (Paischer et al. 2024).

An incremental SVD of the activations runs until its components settle; then the modules whose
components explain most get the rank that others lose, at the same total (rho = 2: up to twice r).
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from peft import EvaConfig, initialize_lora_eva_weights
from torch import Tensor

from gapinit.adapters.lora import ADAPTER, lora_layers
from gapinit.adapters.methods.setup import CALIBRATION_SAMPLES, Adapted, Setup
from gapinit.backbones.tail import tail_states

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone


def adapt(setup: Setup) -> Adapted:
    """Add the adapter with PEFT's own initialiser, run on the first training batches."""
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
    names = [re.escape(name.removeprefix("base_model.model.")) for name in lora_layers(model)]
    config: Any = model.peft_config[ADAPTER]
    config.target_modules = "|".join(names)
    return Adapted(model)


def _forward(backbone: Backbone, _: object, batch: dict[str, Tensor]) -> None:
    tail_states(backbone, batch)


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
