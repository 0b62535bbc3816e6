"""What each step of a training run saw: loss, gradient norm, learning rate and alignment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gapinit.errors import GapinitError

STEP_COLUMNS = ("step", "loss", "grad_norm", "learning_rate", "alignment")


class StepLog:
    """Keep loss, gradient norm, learning rate and the alignment of B with the gap, step by step.

    A step's row is what that step saw: loss, gradient and alignment before its update.
    """

    def __init__(self, run: str, directions: Mapping[str, Tensor]) -> None:
        """`directions`: each adapted module's unit direction, (d_out,) float64."""
        self.run = run
        self.rows: list[dict[str, float]] = []
        self.failed: str | None = None
        """What was wrong at the step that ended the run; None: nothing was."""
        self._directions = directions
        self._alignment = 0.0

    def measure(self, columns: Mapping[str, Tensor]) -> None:
        """Measure the alignment before an update: the mean of |cos| over modules.

        `columns`: the first column of B by module, (d_out,).
        """
        cosines = []
        for name, direction in self._directions.items():
            wide = columns[name].to("cpu", torch.float64)
            norm = torch.linalg.vector_norm(wide)
            cosines.append((wide @ direction / norm).item() if norm > 0 else 0.0)
        self._alignment = sum(abs(cosine) for cosine in cosines) / len(cosines)

    def add(self, step: int, loss: float, grad_norm: float, learning_rate: float) -> None:
        """Keep a step's row; a loss or gradient that is not finite ends the run."""
        if self.failed is not None:
            return
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.failed = (
                f"{self.run}: the loss ({loss}) or its gradient ({grad_norm}) is not finite at "
                f"step {step}: lower training.learning_rate"
            )
            return
        self.rows.append(
            {
                "step": step,
                "loss": loss,
                "grad_norm": grad_norm,
                "learning_rate": learning_rate,
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


def require_one_left(logs: list[StepLog]) -> None:
    """Raise GapinitError when no run of those that are trained together is finite any more."""
    messages = [log.failed for log in logs if log.failed is not None]
    if len(messages) == len(logs):
        raise GapinitError("; ".join(messages))
