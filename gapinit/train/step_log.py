"""The step log of a training run: loss, gradient norm, learning rate and alignment of each step.

Reading a step log imports no torch: tables and figures do so.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gapinit.artifacts.digests import require_unaltered
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

STEP_COLUMNS = ("step", "loss", "grad_norm", "learning_rate", "alignment")
Steps = Mapping[str, "NDArray[np.float64]"]
"""Values by column, (steps,)."""


class StepLog:
    """Loss, gradient norm, learning rate and alignment of B with the gap, one row per step.

    All values of a row are measured before the step's update.
    """

    def __init__(
        self, run: str, layers: Mapping[str, Any], directions: Mapping[str, Tensor]
    ) -> None:
        """`layers`: PEFT modules by name; `directions`: unit vectors of some of them, (d_out,)."""
        self.run = run
        self.rows: list[dict[str, float]] = []
        self._layers = layers
        self._directions = directions
        self._alignment = 0.0

    def measure(self) -> None:
        """Measure the alignment before an update: the mean over modules of |cos(b, u)|.

        b is the first column of a module's B, u is the module's direction.
        """
        from gapinit.adapters.directions import column_cosine
        from gapinit.adapters.lora import ADAPTER

        cosines = [
            column_cosine(self._layers[name].lora_B[ADAPTER].weight.detach()[:, 0], direction)
            for name, direction in self._directions.items()
        ]
        self._alignment = sum(abs(cosine) for cosine in cosines) / len(cosines)

    def add(self, step: int, loss: float, grad_norm: float, learning_rate: float) -> None:
        """Add a step's row; raise GapinitError for a loss or gradient that is not finite."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise GapinitError(
                f"{self.run}: the loss ({loss}) or its gradient ({grad_norm}) is not finite at "
                f"step {step}: lower training.learning_rate"
            )
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
        """Return the mean loss of the last `share` of the run's steps."""
        last = self.rows[-max(1, round(share * len(self.rows))) :]
        return sum(row["loss"] for row in last) / len(last)

    def write(self, path: Path) -> None:
        """Write the log as CSV, one line per step."""
        lines = [",".join(STEP_COLUMNS)]
        lines += [",".join(repr(row[column]) for column in STEP_COLUMNS) for row in self.rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_steps(path: Path) -> Steps:
    """Return the columns of a step log; raise GapinitError for a missing or damaged file."""
    try:
        require_unaltered(path)
        with Path(path).open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        if not lines:
            raise GapinitError(f"{path}: no steps. Train this run again.")
        return {name: np.array([float(line[name]) for line in lines]) for name in STEP_COLUMNS}
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such file. Train this run first.") from None
    except (KeyError, TypeError, ValueError) as error:
        raise GapinitError(
            f"{path}: expected the columns {', '.join(STEP_COLUMNS)} with a number on every line "
            f"({error}). Train this run again."
        ) from None
