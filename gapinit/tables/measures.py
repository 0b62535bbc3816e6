"""Numbers about a training itself, for tables: from a run's `run.json` and its step log.

Scores say where a run ended; these say how it went there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gapinit.errors import GapinitError
from gapinit.train.step_log import Steps, read_steps

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAST_SHARE = 0.1
"""Share of the steps over which the end of a run is averaged."""
WINDOW_SHARE = 0.05
"""Width of the running mean, as a share of the steps."""


def measure(name: str, folder: Path, record: Mapping[str, Any], target_loss: float | None) -> float:
    """Return one measure of a run, from its folder and its `run.json`.

    Raises GapinitError for a record that lacks it.
    """
    if name in FROM_STEPS:
        return float(FROM_STEPS[name](read_steps(folder / "steps.csv"), target_loss))
    value = record.get(name)
    if value is None:
        raise GapinitError(
            f"{folder / 'run.json'}: '{name}' is missing. Train the run again with this version."
        )
    return float(value)


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the trailing mean over a twentieth of the steps; the first ones have fewer."""
    width = max(2, round(WINDOW_SHARE * len(values)))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _final(values: NDArray[np.float64]) -> float:
    return float(values[-max(1, round(LAST_SHARE * len(values))) :].mean())


def _oscillation(steps: Steps, _: float | None) -> float:
    """Standard deviation of the loss around its running mean, in the second half of the run.

    ASSUME: the study of LoRA dynamics speaks of oscillation and gives no formula.
    """
    loss = steps["loss"]
    half = len(loss) // 2
    return float((loss - running_mean(loss))[half:].std())


def _steps_to_loss(steps: Steps, target: float | None) -> float:
    """First step at which the running mean of the loss is at the target or below.

    A run that never gets there counts with all its steps.
    """
    if target is None:
        raise GapinitError("steps_to_loss: the experiment says no target_loss")
    reached = np.flatnonzero(running_mean(steps["loss"]) <= target)
    return float(reached[0] + 1 if len(reached) else len(steps["loss"]))


FROM_STEPS: dict[str, Callable[[Steps, float | None], float]] = {
    "final_loss": lambda steps, _: _final(steps["loss"]),
    "loss_oscillation": _oscillation,
    "peak_grad_norm": lambda steps, _: float(steps["grad_norm"].max()),
    "final_grad_norm": lambda steps, _: _final(steps["grad_norm"]),
    "final_alignment": lambda steps, _: float(steps["alignment"][-1]),
    "steps_to_loss": _steps_to_loss,
}
FROM_RECORD = ("first_grad_norm", "gradient_share", "trainable_parameters")
MEASURES = (*FROM_RECORD, *FROM_STEPS)
"""Every measure, by the name that an experiment's `metrics` calls it."""
