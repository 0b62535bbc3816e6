"""Send a run's step log to TensorBoard, Weights & Biases or MLflow through Trainer's callbacks.

The callbacks get the content of `steps.csv` and `run.json` after the training, so runs trained
earlier can be sent, too. A tracker shows one run per run here, named by its path. Each tracker
reads its own environment variables (WANDB_PROJECT, MLFLOW_TRACKING_URI, ...), as under Trainer.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import read_json
from gapinit.config.runs import Run
from gapinit.errors import GapinitError
from gapinit.train.step_log import Steps, read_steps

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Names for `report_to`, which are also the package names."""


def report_run(run: Path, to: Sequence[str], output: Path) -> str:
    """Send one run's loss, gradient norm, learning rate and alignment of each step to trackers.

    Args:
        run: folder of a trained run, with `run.json` and `steps.csv`.
        to: names of `TRACKERS`.
        output: folder of local files: TensorBoard's event files in
            `<output>/tensorboard/<run path>`, W&B's files in `<output>/wandb`, MLflow's in
            `<output>/mlflow.db` unless MLFLOW_TRACKING_URI is set.

    Returns:
        The run's path, its name in every tracker.

    Raises:
        GapinitError: a tracker is unknown or not installed, or a file of the run is invalid.
    """
    require_trackers(to)
    record, steps = read_json(run / "run.json"), read_steps(run / "steps.csv")
    try:
        name = Run(**record["factors"]).path
    except (KeyError, TypeError) as error:
        raise GapinitError(
            f"{run / 'run.json'}: not the record of a run ({error!r}). Train the run again."
        ) from None
    with _environment(output.resolve(), name), tempfile.TemporaryDirectory() as scratch:
        for tracker in to:
            _send(tracker, name, record, steps, scratch)
    return name


def require_trackers(to: Sequence[str]) -> None:
    """Raise GapinitError for a tracker that is unknown or whose package is not installed."""
    for name in to:
        if name not in TRACKERS:
            raise GapinitError(
                f"report_to: unknown tracker '{name}', expected one of: {', '.join(TRACKERS)}"
            )
        if find_spec(name) is None:
            raise GapinitError(
                f"report_to: the package of '{name}' is not installed: pip install {name}"
            )


def _send(
    tracker: str,
    name: str,
    record: Mapping[str, Any],
    steps: Steps,
    scratch: str,
) -> None:
    """Call one of Trainer's callbacks with the steps of a finished training."""
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks

    arguments = TrainingArguments(output_dir=scratch, run_name=name, report_to=[], use_cpu=True)
    state, control = TrainerState(max_steps=len(steps["step"])), TrainerControl()
    (kind,) = get_reporting_integration_callbacks([tracker])
    callback = kind()
    callback.on_train_begin(arguments, state, control, model=_NoModel(record))
    for index, step in enumerate(steps["step"]):
        state.global_step = int(step)
        logs = {key: float(values[index]) for key, values in steps.items() if key != "step"}
        callback.on_log(arguments, state, control, logs=logs, model=None)
    callback.on_train_end(arguments, state, control, model=None)
    if tracker == "wandb":
        # Trainer keeps W&B's run open until the process ends, but more runs may follow.
        callback._wandb.finish()


class _NoModel:
    """Stands for a model in trackers; its configuration is the run's factors and recipe."""

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
    """Set the trackers' output folders; variables that the user has set take precedence."""
    output.mkdir(parents=True, exist_ok=True)
    before = dict(os.environ)
    wanted = {
        "WANDB_DIR": str(output),
        "WANDB_WATCH": "false",
        "WANDB_LOG_MODEL": "false",
        "MLFLOW_TRACKING_URI": f"sqlite:///{output / 'mlflow.db'}",
    }
    os.environ.update({**wanted, **before})
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(output / "tensorboard" / name)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
