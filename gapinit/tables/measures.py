"""The records of a training run, and the numbers that tables take from them.

`run.json` holds factors and results, `process.json` the cost of the process, `steps.csv` loss,
gradient and alignment of every step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from gapinit.artifacts.artifacts import read_json
from gapinit.config.runs import Run
from gapinit.config.yaml_files import check_settings
from gapinit.errors import GapinitError
from gapinit.train.step_log import Steps, read_steps

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAST_SHARE = 0.1
"""Share of the steps over which the end of a run is averaged."""
WINDOW_SHARE = 0.05
"""Width of the running mean, as a share of the steps."""

Cosine = Annotated[float, Field(ge=-1.00001, le=1.00001)]
"""In single precision, a cosine may pass 1 by a rounding error."""


class RunRecord(BaseModel):
    """What tables, figures and the report read in `run.json`; other keys are ignored."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    factors: dict[str, Any]
    trainable_parameters: int | None = None
    first_grad_norm: float | None = None
    gradient_share: float | None = None
    final_loss: float | None = None
    noise_cosine: float | None = None
    """Cosine of the noisy direction to the gap."""
    alignment_at_init: list[Cosine] | None = None
    """Cosine of B's first column to the held-out gap, for each adapted module."""
    layers: tuple[int, ...] = ()
    versions: dict[str, str] = {}
    inputs: dict[str, Any] = {}
    """Digests of the run's input files."""


class ProcessRecord(BaseModel):
    """`process.json`: numbers that differ each time the same run is trained."""

    seconds: float | None = None
    peak_memory_mb: float | None = None
    threads: int | None = None
    command: tuple[str, ...] = ()


def read_record(path: Path) -> RunRecord:
    """Read one `run.json`; an error names file, key and what was found."""
    return check_settings(read_json(path), RunRecord, str(path))


def read_run_record(folder: Path, run: Run, wanted_by: str) -> RunRecord:
    """Return a run's record; one with other factors is an error, an untrained run has no file."""
    if not run.trained:
        return RunRecord(factors=run.factors)
    path = Path(folder) / run.path / "run.json"
    if not path.is_file():
        raise GapinitError(
            f"{path}: no such file, wanted by {wanted_by}. The training rule (rules/4_train.smk) "
            f"makes it: snakemake --cores all {path}"
        )
    record = read_record(path)
    if record.factors != run.factors:
        raise GapinitError(
            f"{path}: expected the record of the run with the factors {run.factors}, found "
            f"{record.factors}. Delete the run's folder and train again."
        )
    return record


def read_process(folder: Path, run: Run) -> ProcessRecord:
    """Return the cost of training a run; an untrained run has no file."""
    path = Path(folder) / run.path / "process.json"
    return check_settings(read_json(path) if run.trained else {}, ProcessRecord, str(path))


def measure(name: str, folder: Path, record: RunRecord, target_loss: float | None) -> float:
    """Return one measure of a run, from its folder and its record.

    Raises GapinitError for a record that lacks it.
    """
    if name in FROM_STEPS:
        return float(FROM_STEPS[name](read_steps(folder / "steps.csv"), target_loss))
    value = getattr(record, name)
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


def _oscillation(steps: Steps, _: Any) -> float:
    """Standard deviation of the loss around its running mean, in the second half of the run.

    ASSUME: the study of LoRA dynamics mentions oscillation and gives no formula.
    """
    loss = steps["loss"]
    half = len(loss) // 2
    return float((loss - running_mean(loss))[half:].std())


def _steps_to_loss(steps: Steps, target: float) -> float:
    """First step at which the running mean of the loss is at the target or below.

    A run that never reaches the target counts with all its steps.
    """
    reached = np.flatnonzero(running_mean(steps["loss"]) <= target)
    return float(reached[0] + 1 if len(reached) else len(steps["loss"]))


FROM_STEPS: dict[str, Callable[[Steps, Any], float]] = {
    "final_loss": lambda steps, _: _final(steps["loss"]),
    "loss_oscillation": _oscillation,
    "peak_grad_norm": lambda steps, _: float(steps["grad_norm"].max()),
    "final_grad_norm": lambda steps, _: _final(steps["grad_norm"]),
    "final_alignment": lambda steps, _: float(steps["alignment"][-1]),
    "steps_to_loss": _steps_to_loss,
}
