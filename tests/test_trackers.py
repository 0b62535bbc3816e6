"""Step logs in trackers: what TensorBoard reads back is what the run logged, for each run alone."""

from __future__ import annotations

import math
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gapinit.artifacts.artifacts import read_json, write_json
from gapinit.cli import app
from gapinit.config.runs import Run
from gapinit.errors import GapinitError
from gapinit.train.trackers import TRACKERS, report_run, require_trackers

from .plain_json import forget_digests

RUN = Run("mini", "scenes", "gap-init", 1, "naive", 2, "in-domain", 64, seed=42)


def trained(folder: Path, run: Run = RUN, first: float = 4.0) -> Path:
    """Write a trained run's record and step log."""
    record = {"factors": run.factors, "recipe": {"learning_rate": 0.01}, "layers": [4, 5]}
    write_json(folder / "run.json", record | {"trainable_parameters": 100})
    lines = [f"{n},{first / n},{0.5 * n},0.01,{1 - n / 100}" for n in range(1, 8)]
    text = "\n".join(["step,loss,grad_norm,learning_rate,alignment", *lines])
    (folder / "steps.csv").write_text(text + "\n", encoding="utf-8")
    return folder


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """Read a curve back with TensorBoard's own reader."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def test_tensorboard_has_every_step_of_each_run_alone(tmp_path: Path) -> None:
    before = dict(os.environ)
    runs = {RUN: 4.0, Run("mini", "scenes", "pissa", 1, "naive", 2, seed=7): 9.0}
    for run, first in runs.items():
        folder, mark = trained(tmp_path / run.method, run, first), tmp_path / "done.json"
        options = ["--run", folder, "--report-to", "tensorboard", "--folder", tmp_path / "trackers"]
        done = CliRunner().invoke(app, ["track", *map(str, options), "--output", str(mark)])
        assert done.exit_code == 0, done.output
        assert read_json(mark) == {"run": run.path, "report_to": ["tensorboard"]}
    assert dict(os.environ) == before
    for run, first in runs.items():
        found = tmp_path / "trackers" / "tensorboard" / run.path
        losses = scalars(found, "train/loss")
        assert [step for step, _ in losses] == list(range(1, 8))
        assert all(math.isclose(v, first / n, rel_tol=1e-6) for n, v in losses)
        assert math.isclose(scalars(found, "train/alignment")[-1][1], 0.93, rel_tol=1e-6)
        assert scalars(found, "train/grad_norm")[2] == (3, 1.5)


def test_an_unknown_tracker_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run")
    with pytest.raises(GapinitError, match="unknown tracker 'comet', expected one of: tensorboard"):
        report_run(folder, ["tensorboard", "comet"], tmp_path / "trackers")
    assert not (tmp_path / "trackers").exists()


def test_a_tracker_that_is_not_installed_is_named_with_the_command() -> None:
    missing = [name for name in TRACKERS if find_spec(name) is None]
    if not missing:
        pytest.skip("every tracker is installed here")
    with pytest.raises(GapinitError, match=f"pip install {missing[0]}"):
        require_trackers([missing[0]])


def test_a_record_of_no_run_is_named(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run")
    forget_digests(folder / "run.json")
    (folder / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(GapinitError, match=r"run.json: not the record of a run"):
        report_run(folder, ["tensorboard"], tmp_path / "trackers")
