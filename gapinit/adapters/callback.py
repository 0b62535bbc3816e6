"""`gapinit.GapAlignmentCallback`: the alignment of B with the gap in a Trainer's log."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gapinit.adapters.directions import (
    Coordinates,
    column_cosines,
    covered_modules,
    module_directions,
)
from gapinit.gap.options import check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from gapinit.adapters.directions import Linear
    from gapinit.gap.gap_vectors import GapVectors

LOG_KEY = "gap_alignment"


class GapAlignmentCallback(TrainerCallback):
    """Add `gap_alignment` to each training entry of a Trainer's log, and change nothing else.

    It is the mean over modules of |cos| between B's first column and the module's direction,
    measured after the logged step. The sign is ignored: flipping both B and A gives the same
    update. The value is in `trainer.state.log_history` and in the logs that later callbacks get.
    Trainer calls its own reporters (TensorBoard, Weights & Biases) before the callbacks given to
    it: to report the value there too, add the reporter last, with `trainer.add_callback`.

    `GapinitError` at the start of training if the gap was measured on another model.
    """

    def __init__(
        self,
        gap: GapVectors,
        *,
        adapter_name: str = "default",
        coordinates: Coordinates = "layer",
    ) -> None:
        check_choice("coordinates", coordinates, Coordinates)
        self._gap = gap
        self._adapter_name = adapter_name
        self._coordinates: Coordinates = coordinates
        self._modules: list[Linear] = []
        self._directions: dict[str, Tensor] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Find the modules and their directions once; warn if A is frozen."""
        self._modules, _comparison = covered_modules(model, self._gap, self._adapter_name)
        self._directions = module_directions(self._modules, self._gap, self._coordinates)
        frozen = [
            one.name
            for one in self._modules
            if not one.module.lora_A[self._adapter_name].weight.requires_grad
        ]
        if frozen:
            warnings.warn(
                f"A of adapter '{self._adapter_name}' is frozen in {len(frozen)} modules (LoRA-FA?)"
                ": after Gap-Init, which sets A = 0, they never learn anything",
                stacklevel=2,
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Add the mean alignment to an entry of the training loss."""
        if not logs or "loss" not in logs or not self._modules:
            return
        cosines = column_cosines(self._modules, self._directions, self._adapter_name)
        mean = sum(abs(cosine) for cosine in cosines.values()) / len(cosines)
        logs[LOG_KEY] = mean
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1][LOG_KEY] = mean
