"""A run's step log in TensorBoard, Weights & Biases or MLflow, by Trainer's own callbacks.

The callbacks are driven from `steps.csv` and `run.json` after a training: every run is a run there,
too, under its own path, however many of them one process trained, and one that was trained long ago
can still be shown. Each tracker reads its own environment variables (WANDB_PROJECT,
MLFLOW_TRACKING_URI, ...), as it does under Trainer.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import read_json, write_json
from gapinit.errors import GapinitError

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Names that `report_to` may hold, and the package that each needs."""


def report_run(run: Path, to: Sequence[str], output: Path) -> None:
    """Send one run's loss, gradient norm, learning rate and alignment, step by step, to trackers.

    Args:
        run: folder of a trained run, with `run.json` and `steps.csv`.
        to: names of `TRACKERS`.
        output: folder for what trackers write on this machine: TensorBoard's event files lie in
            `<output>/tensorboard/<run path>`, W&B's files in `<output>/wandb`, MLflow's in
            `<output>/mlflow.db` unless MLFLOW_TRACKING_URI says otherwise.

    Raises:
        GapinitError: a tracker is unknown or not installed; the run's files are not those of a run.
    """
    require_trackers(to)
    record, steps = read_json(Path(run) / "run.json"), _steps(Path(run) / "steps.csv")
    name = _run_name(record, Path(run))
    with _environment(output, name), tempfile.TemporaryDirectory() as scratch:
        for tracker in to:
            _send(tracker, name, record, steps, scratch)


def mark_reported(run: Path, to: Sequence[str], output: Path) -> None:
    """Write which trackers have a run, for the workflow to see that it is done."""
    write_json(output, {"run": _run_name(read_json(run / "run.json"), run), "report_to": list(to)})


def require_trackers(to: Sequence[str]) -> None:
    """Refuse a tracker that is unknown or whose package is not installed."""
    for name in to:
        if name not in TRACKERS:
            raise GapinitError(
                f"report_to: unknown tracker '{name}', expected one of: {', '.join(TRACKERS)}"
            )
        if find_spec(TRACKERS[name]) is None:
            raise GapinitError(
                f"report_to: '{name}' needs the package {TRACKERS[name]}, which is not installed: "
                f"pip install {TRACKERS[name]}"
            )


def _send(
    tracker: str,
    name: str,
    record: Mapping[str, Any],
    steps: Sequence[Mapping[str, float]],
    scratch: str,
) -> None:
    """Drive one of Trainer's callbacks through a training that is over."""
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks

    arguments = TrainingArguments(output_dir=scratch, run_name=name, report_to=[], use_cpu=True)
    state, control = TrainerState(max_steps=len(steps)), TrainerControl()
    (kind,) = get_reporting_integration_callbacks([tracker])
    callback = kind()
    callback.on_train_begin(arguments, state, control, model=_NoModel(record))
    for row in steps:
        state.global_step = int(row["step"])
        logs = {key: value for key, value in row.items() if key != "step"}
        callback.on_log(arguments, state, control, logs=logs, model=None)
    callback.on_train_end(arguments, state, control, model=None)
    if tracker == "wandb":
        # Trainer leaves the run open for the process; here the next one is another run.
        callback._wandb.finish()


class _NoModel:
    """What trackers read of a model: its configuration, which here is the run's own record."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        from transformers import PretrainedConfig

        kept = {**record.get("factors", {}), **record.get("recipe", {})}
        self.config = PretrainedConfig(
            **{f"gapinit_{key}": value for key, value in kept.items() if value is not None}
        )
        self._parameters = int(record.get("trainable_parameters") or 0)

    def num_parameters(self) -> int:
        return self._parameters


@contextmanager
def _environment(output: Path, name: str) -> Iterator[None]:
    """Tell the trackers where to write; what the user has set stays, and all is put back."""
    output = Path(output).resolve()
    wanted = {
        "TENSORBOARD_LOGGING_DIR": str(output / "tensorboard" / name),
        "WANDB_DIR": os.environ.get("WANDB_DIR", str(output)),
        "WANDB_WATCH": os.environ.get("WANDB_WATCH", "false"),
        "WANDB_LOG_MODEL": os.environ.get("WANDB_LOG_MODEL", "false"),
        "MLFLOW_TRACKING_URI": os.environ.get(
            "MLFLOW_TRACKING_URI", f"sqlite:///{output / 'mlflow.db'}"
        ),
    }
    output.mkdir(parents=True, exist_ok=True)
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _run_name(record: Any, folder: Path) -> str:
    from gapinit.config.runs import Run

    try:
        return Run(**record["factors"]).path
    except (KeyError, TypeError) as error:
        raise GapinitError(
            f"{folder / 'run.json'}: not the record of a run ({error!r}). Train the run again."
        ) from None


def _steps(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            rows = [{key: float(v) for key, v in row.items()} for row in csv.DictReader(handle)]
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such file. Train the run again.") from None
    except (TypeError, ValueError) as error:
        raise GapinitError(f"{path}: not a step log ({error}). Train the run again.") from None
    if not rows or "step" not in rows[0]:
        raise GapinitError(f"{path}: not a step log, it has no steps. Train the run again.")
    return rows
