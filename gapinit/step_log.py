"""What each step of a training run saw: loss, gradient norm, learning rate and alignment."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gapinit.adapters import column_cosines, directed_layers
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from peft import PeftModel

STEP_COLUMNS = ("step", "loss", "grad_norm", "learning_rate", "alignment")


class StepLog(TrainerCallback):
    """Keep loss, gradient norm, learning rate and the alignment of B with the gap, step by step.

    A step's row is what that step saw: loss, gradient and alignment before its update.
    """

    def __init__(self, model: PeftModel, directions: dict[str, Tensor]) -> None:
        self.rows: list[dict[str, float]] = []
        self._layers = directed_layers(model, directions)
        self._directions = directions
        self._alignment = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Measure the alignment before the update: the mean of |cos| over modules."""
        cosines = column_cosines(self._layers, self._directions)
        self._alignment = sum(abs(cosine) for cosine in cosines) / len(cosines)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Keep the step's row; a loss that is not finite ends the run."""
        if not logs or "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), float(logs["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise GapinitError(
                f"the loss ({loss}) or its gradient ({norm}) is not finite at step "
                f"{state.global_step}: lower training.learning_rate"
            )
        self.rows.append(
            {
                "step": state.global_step,
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": float(logs["learning_rate"]),
                "alignment": self._alignment,
            }
        )

    def mean_of_last(self, share: float) -> float:
        """Return the mean loss of the last part of the run."""
        last = self.rows[-max(1, round(share * len(self.rows))) :]
        return sum(row["loss"] for row in last) / len(last)

    def write(self, path: Path) -> None:
        """Write the log as CSV, one line a step."""
        lines = [",".join(STEP_COLUMNS)]
        lines += [",".join(repr(row[column]) for column in STEP_COLUMNS) for row in self.rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
