"""Measures of a training: what a table says beside the scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gapinit.config.experiments import METRICS
from gapinit.errors import GapinitError
from gapinit.tables.measures import FROM_STEPS, RunRecord, measure, running_mean

EMPTY = RunRecord(factors={})


def log(folder: Path, loss: list[float], norm: list[float] | None = None) -> Path:
    norms = norm or [1.0] * len(loss)
    lines = ["step,loss,grad_norm,learning_rate,alignment"]
    lines += [f"{n},{a},{b},0.1,{0.9 - n / 1000}" for n, (a, b) in enumerate(zip(loss, norms), 1)]  # noqa: B905
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "steps.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_every_measure_has_a_metric_and_every_such_metric_a_measure() -> None:
    named = {name for name, metric in METRICS.items() if metric.of_training}
    assert named - {*FROM_STEPS} <= {*RunRecord.model_fields} and {*FROM_STEPS} <= named


def test_the_loss_of_a_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    falling = np.linspace(3, 1, 200)
    quiet = log(tmp_path / "quiet", list(falling))
    noisy = log(tmp_path / "noisy", list(falling + rng.normal(0, 0.2, 200)))
    assert measure("final_loss", quiet, EMPTY, None) == pytest.approx(falling[-20:].mean())
    assert measure("loss_oscillation", noisy, EMPTY, None) == pytest.approx(0.2, rel=0.25)
    assert measure("loss_oscillation", quiet, EMPTY, None) < 0.01
    steps = measure("steps_to_loss", quiet, EMPTY, 2.0)
    trailing = [falling[max(0, n - 9) : n + 1].mean() for n in range(200)]
    assert steps == 1 + next(n for n, value in enumerate(trailing) if value <= 2.0)
    assert measure("steps_to_loss", quiet, EMPTY, 0.5) == 200, "never reached: all its steps"


def test_the_gradient_and_the_direction_of_a_run(tmp_path: Path) -> None:
    folder = log(tmp_path / "run", [1.0] * 10, [0.5, 7.0, *[2.0] * 8])
    assert measure("peak_grad_norm", folder, EMPTY, None) == 7.0
    assert measure("final_grad_norm", folder, EMPTY, None) == 2.0
    assert measure("final_alignment", folder, EMPTY, None) == pytest.approx(0.89)
    record = RunRecord(factors={}, first_grad_norm=0.5)
    assert measure("first_grad_norm", folder, record, None) == 0.5


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = log(tmp_path / "run", [1.0] * 3)
    with pytest.raises(GapinitError, match=r"run.json: 'gradient_share' is missing"):
        measure("gradient_share", folder, EMPTY, None)


def test_the_running_mean_trails() -> None:
    np.testing.assert_allclose(running_mean(np.array([4.0, 0.0, 8.0])), [4, 2, 4])
    values = np.arange(100.0)
    np.testing.assert_allclose(running_mean(values)[10:], values[10:] - 2)
