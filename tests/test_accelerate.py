"""Runs on two processes (accelerate, gloo) are the same runs: losses, gradients and adapters."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from gapinit.artifacts.artifacts import read_json
from gapinit.cli.options import without_options
from gapinit.config.runs import Run
from gapinit.errors import GapinitError
from gapinit.train.launch import LAUNCHED, _cause, require_enough_samples
from gapinit.train.processes import own_part
from gapinit.train.trunk.write import read_trunk

from .small_backbone import SmallWorld, small_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


def command(
    world: SmallWorld, output: Path, *options: str, method: str = "gap-init", seeds: int = 1
) -> list[str]:
    gap = {"calibration": "in-domain", "calibration_size": 12} if method == "gap-init" else {}
    given: list[object] = [sys.executable, "-m", "gapinit", "train"]
    for seed in (42, 7, 5)[:seeds]:
        run = Run("tiny", "tiny", method, layers="naive", rank=1, epochs=2, seed=seed, **gap)
        given += ["--run", run.path, "--output", output / f"seed{seed}"]
    given += [
        "--backbone", world.backbone, "--trunk", world.trunk("naive"), "--layers", world.layers,
        "--gap", world.gap, "--learning-rate", "0.01", "--dropout", "0", "--device", "cpu",
        "--warmup-ratio", "0.3", *options,
    ]  # fmt: skip
    return list(map(str, given))


def train(
    world: SmallWorld, output: Path, *options: str, method: str = "gap-init", seeds: int = 1
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(world, output, *options, method=method, seeds=seeds),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def steps(folder: Path) -> list[dict[str, float]]:
    with (folder / "steps.csv").open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def short_last_batch(world: SmallWorld) -> int:
    """An odd batch size that leaves one sample over: one of two processes has none of it."""
    texts = len(read_trunk(world.trunk("naive")))
    return next(size for size in range(texts // 4, 2, -1) if size % 2 and texts % size == 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "seeds", "options"),
    [
        ("gap-init", 1, ("--gradient-accumulation", "2")),
        ("lora-ga", 2, ("--group-by-length",)),
        ("gap-init", 2, ("--together", "always")),
    ],
    ids=["accumulated", "seeds one after another", "seeds in one pass"],
)
def test_accelerate_on_two_processes_learns_what_one_does(
    world: SmallWorld, tmp_path: Path, method: str, seeds: int, options: tuple[str, ...]
) -> None:
    options = ("--batch-size", str(short_last_batch(world)), *options)
    for name, more in (("one", ()), ("two", ("--num-processes", "2"))):
        done = train(world, tmp_path / name, *options, *more, method=method, seeds=seeds)
        assert done.returncode == 0, done.stderr[-4000:]
    for seed in (42, 7)[:seeds]:
        one, two = tmp_path / f"one/seed{seed}", tmp_path / f"two/seed{seed}"
        assert len(steps(one)) == len(steps(two)) >= 6
        for left, right in zip(steps(one), steps(two), strict=True):
            assert right == pytest.approx(left, abs=1e-4)
        losses = [row["loss"] for row in steps(one)]
        assert max(losses) - min(losses) > 1e-2, "a run that learns nothing shows nothing"
        wanted = load_file(one / "adapter/adapter_model.safetensors")
        found = load_file(two / "adapter/adapter_model.safetensors")
        for name, value in wanted.items():
            assert (found[name] - value).abs().max() < 1e-3, name
        assert read_json(two / "run.json")["recipe"] == read_json(one / "run.json")["recipe"]
        assert read_json(one / "process.json")["processes"] == 1
        assert read_json(two / "process.json")["processes"] == 2
    assert not list(tmp_path.glob("two/.partial*")), "what was kept for a second call is cleared"


@pytest.mark.slow
def test_accelerate_goes_on_from_a_checkpoint_and_a_killed_process_ends_all(
    world: SmallWorld, tmp_path: Path
) -> None:
    options = ("--batch-size", "7", "--checkpoint-steps", "4", "--num-processes", "2")
    options = (*options, "--dropout", "0.2")  # each process's masks go on, too
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(world, whole, *options).returncode == 0
    started = subprocess.Popen(
        command(world, broken, *options),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(broken.glob(".partial-*/checkpoint-[48]*/seal.json")):
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    second = workers(started.pid)[1]
    os.kill(second, signal.SIGKILL)
    said = started.communicate(timeout=60)[1]
    assert started.returncode == 1
    assert said.count("error: ") == 1 and "was ended by SIGKILL" in said
    assert "Traceback" not in said
    assert not (broken / "seed42").exists()
    assert train(world, broken, *options).returncode == 0
    for name in ("steps.csv", "run.json", "adapter/adapter_model.safetensors"):
        assert (broken / "seed42" / name).read_bytes() == (whole / "seed42" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_accelerate_leaves_no_process_behind(
    world: SmallWorld, tmp_path: Path, number: signal.Signals
) -> None:
    options = ("--num-processes", "2", "--batch-size", "2", "--checkpoint-steps", "1")
    started = subprocess.Popen(command(world, tmp_path, *options), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".partial-*/checkpoint-*/seal.json")):
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    both = workers(started.pid)
    assert len(both) == 2
    started.send_signal(number)
    started.wait(60)
    while any(Path(f"/proc/{pid}/exe").exists() for pid in both):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (tmp_path / "seed42").exists()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def workers(launcher: int) -> list[int]:
    """The processes that train, by rank; the launcher's launcher is between."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            environment = (place / "environ").read_bytes().split(b"\0")
            grandparent = parent(parent(int(place.name)))
        except (OSError, ValueError):
            continue
        ranks = [it for it in environment if it.startswith(b"RANK=")]
        if launcher == grandparent and ranks:
            found[int(ranks[0][5:])] = int(place.name)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
def test_accelerate_tells_the_error_of_its_processes_once(
    world: SmallWorld, tmp_path: Path
) -> None:
    done = train(world, tmp_path, "--num-processes", "2", "--learning-rate", "1e29")
    assert done.returncode == 1
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "is not finite at step" in message
    assert "Traceback" not in done.stderr and "torch/distributed" not in done.stderr
    assert not (tmp_path / "seed42").exists()


def test_accelerate_refuses_more_processes_than_samples(world: SmallWorld, tmp_path: Path) -> None:
    done = train(world, tmp_path, "--batch-size", "2", "--num-processes", "3")
    assert done.returncode == 1
    assert done.stderr.startswith("error: 3 processes (--num-processes, training.num_processes)")
    require_enough_samples(3, 3)
    with pytest.raises(GapinitError, match="at most as many processes as samples"):
        require_enough_samples(2, 3)


def test_accelerate_refuses_one_device_for_several_processes(
    world: SmallWorld, tmp_path: Path
) -> None:
    done = train(world, tmp_path, "--num-processes", "2", "--device", "cuda:0")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --device cuda:0: names one device, and")


def test_accelerate_passes_the_command_on_without_its_own_options() -> None:
    given = ["--log-file", "a", "train", "--num-processes", "2", "--run", "x", "--device=cpu", "-y"]
    wanted = ["train", "--run", "x", "-y"]
    assert without_options(given, "--num-processes", "--device", "--log-file") == wanted


def test_accelerate_deals_every_sample_once_and_counts_a_stand_in_with_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv(LAUNCHED, "3")
    parts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts.append([own_part(range(7)), own_part(range(2))])
    assert sorted(sample for (part, _), _ in parts for sample in part) == list(range(7))
    assert [last for _, last in parts] == [(range(0, 1), True), (range(1, 2), True),
                                           (range(0, 1), False)]  # fmt: skip
    monkeypatch.setenv(LAUNCHED, "2")
    with pytest.raises(GapinitError, match="2 processes were asked for and 3 were started"):
        own_part(range(7))
    monkeypatch.delenv(LAUNCHED)
    assert own_part(range(7)) == (range(7), True), "another program's variables mean nothing"


def test_accelerate_names_the_first_cause(tmp_path: Path) -> None:
    def report(rank: int, at: float, message: str | None, trace: str = "") -> None:
        content = {"rank": rank, "time": at, "message": message, "traceback": trace}
        (tmp_path / f"{rank}.json").write_text(json.dumps(content))

    page = "exitcode  : 1 (pid: 5)\n exitcode  : -9 (pid: 6)\n exitcode : -15 (pid: 7)"
    assert "1 of the 2" not in _cause(tmp_path, page, 2, 1)
    assert "ended by SIGKILL" in _cause(tmp_path, page, 2, 1)
    report(1, 2.0, None, "RuntimeError: Connection closed by peer")
    report(0, 1.0, None, "KeyError: 'x'")
    assert "ended by SIGKILL" in _cause(tmp_path, page, 2, 1)
    assert "process 0 of the 2 processes failed" in _cause(tmp_path, "exitcode : 1", 2, 1)
    report(1, 3.0, "the loss is not finite")
    assert _cause(tmp_path, page, 2, 1) == "the loss is not finite"
