"""One run on two processes (accelerate, gloo) is the same run: losses, gradients and adapter."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from gapinit.artifacts import read_json
from gapinit.cli.options import without_options
from gapinit.launch import own_part
from gapinit.runs import Run
from gapinit.trunk import read_trunk

from .small_backbone import SmallWorld, small_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


def train(
    world: SmallWorld, output: Path, *options: str, method: str = "gap-init"
) -> subprocess.CompletedProcess[str]:
    gap = {"calibration": "in-domain", "calibration_size": 12} if method == "gap-init" else {}
    run = Run("tiny", "tiny", method, layers="naive", rank=1, epochs=2, seed=42, **gap)
    command = [
        sys.executable, "-m", "gapinit", "train", "--run", run.path,
        "--backbone", world.backbone, "--trunk", world.trunk("naive"), "--layers", world.layers,
        "--gap", world.gap, "--output", output, "--learning-rate", "0.01", "--dropout", "0",
        "--device", "cpu", *options,
    ]  # fmt: skip
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def steps(folder: Path) -> list[dict[str, float]]:
    with (folder / "steps.csv").open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "accumulation"), [("gap-init", 1), ("lora-ga", 2)])
def test_accelerate_on_two_processes_learns_what_one_does(
    world: SmallWorld, tmp_path: Path, method: str, accumulation: int
) -> None:
    texts = len(read_trunk(world.trunk("naive")))
    batch = next(size for size in range(texts // 3 // 2 * 2, 1, -2) if texts % size)
    options = ("--batch-size", str(batch), "--gradient-accumulation", str(accumulation))
    for name, more in (("one", ()), ("two", ("--num-processes", "2"))):
        done = train(world, tmp_path / name, *options, *more, method=method)
        assert done.returncode == 0, done.stderr[-4000:]
    one, two = steps(tmp_path / "one"), steps(tmp_path / "two")
    assert len(one) == len(two) >= 2
    for left, right in zip(one, two, strict=True):
        assert right == pytest.approx(left, abs=1e-4)
    assert one[0]["loss"] - one[-1]["loss"] > 1e-2, "a run that learns nothing shows nothing"
    adapters = [load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in
                ("one", "two")]  # fmt: skip
    for name, value in adapters[0].items():
        assert (adapters[1][name] - value).abs().max() < 1e-3, name
    records = [read_json(tmp_path / name / "run.json") for name in ("one", "two")]
    assert [record["processes"] for record in records] == [1, 2]
    assert records[1]["recipe"]["batch_size"] == batch


def test_accelerate_refuses_a_batch_that_cannot_be_divided(
    world: SmallWorld, tmp_path: Path
) -> None:
    done = train(world, tmp_path / "run", "--batch-size", "9", "--num-processes", "2")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --num-processes 2: a batch of 9 (--batch-size) cannot be")
    assert not (tmp_path / "run").exists()


def test_accelerate_passes_the_command_on_without_its_own_options() -> None:
    given = [
        "--log-file",
        "a",
        "train",
        "--num-processes",
        "2",
        "--run",
        "x",
        "--device=cpu",
        "--y",
    ]
    wanted = ["--log-file", "a", "train", "--run", "x", "--y"]
    assert without_options(given, "--num-processes", "--device") == wanted


def test_accelerate_deals_every_sample_once_and_counts_a_stand_in_with_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts.append([own_part(range(7)), own_part(range(2))])
    assert sorted(sample for (part, _), _ in parts for sample in part) == list(range(7))
    assert [last for _, last in parts] == [(range(0, 1), True), (range(1, 2), True),
                                           (range(0, 1), False)]  # fmt: skip
