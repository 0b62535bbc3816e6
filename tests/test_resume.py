"""A training that is killed goes on from its last checkpoint and ends in the same bytes."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gapinit.artifacts.artifacts import read_json
from gapinit.artifacts.checkpoints import seal
from gapinit.config.runs import Run
from gapinit.errors import GapinitError
from gapinit.train import group as training_group
from gapinit.train import loop as training_loop
from gapinit.train.loop import RunsTrainer

from .plain_json import forget_digests
from .small_backbone import SmallWorld, small_world

COMPARED = (
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "steps.csv",
    "run.json",
)
RECIPE: dict[str, Any] = {
    "batch_size": 7,
    "gradient_accumulation": 2,
    "epochs": 2,
    "dropout": 0.2,
    "warmup_ratio": 0.3,
    "checkpoint_steps": 4,
}
STEPS = 18  # of two epochs of 18 batches, two a step


class Killed(BaseException):
    """Stands for a signal that no code of the training sees."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The optimiser steps that are run; a `kill` set on the list ends the training before it."""
    seen = Steps()
    original = RunsTrainer.training_step

    def step(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == seen.kill:
            raise Killed
        if not seen or seen[-1] != self.state.global_step:
            seen.append(self.state.global_step)
        return original(self, *arguments, **named)

    monkeypatch.setattr(RunsTrainer, "training_step", step)
    return seen


class Steps(list[int]):
    kill: int | None = None


def runs_of(world: SmallWorld, method: str, count: int) -> list[Run]:
    seeds = (42, 7, 5)[:count]
    return [world.run(method, "naive", {"seed": seed, "epochs": 2, "rank": 2}) for seed in seeds]


def train(world: SmallWorld, folder: Path, runs: list[Run], together: str, **changes: Any) -> None:
    goals = {folder / f"seed{run.seed}": run for run in runs}
    world.train_all(goals, together=together, **RECIPE | changes)


def require_same(one: Path, two: Path, runs: list[Run]) -> None:
    for run in runs:
        for file in COMPARED:
            name = f"seed{run.seed}/{file}"
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert sorted(path.name for path in one.iterdir()) == sorted(f"seed{run.seed}" for run in runs)


@pytest.mark.parametrize("group_by_length", [False, True])
@pytest.mark.parametrize(
    ("method", "together"),
    [
        ("gap-init", "always"),
        ("gap-init", "never"),
        ("pissa", "never"),
        ("dora", "never"),
        ("eva", "never"),
    ],
)
def test_a_killed_training_ends_in_the_same_bytes(
    world: SmallWorld,
    method: str,
    together: str,
    group_by_length: bool,
    stepped: Any,
    tmp_path: Path,
) -> None:
    runs = runs_of(world, method, 2)
    changes = {"group_by_length": group_by_length}
    train(world, tmp_path / "undisturbed", runs, together, **changes)
    whole = list(range(STEPS))
    assert stepped == whole * (1 if together == "always" else 2)
    for kill, start in ((3, 0), (11, 0), (17, 8)):  # before a checkpoint, after, and once more
        stepped.clear()
        stepped.kill = kill
        with pytest.raises(Killed):
            train(world, tmp_path / "killed", runs, together, **changes)
        assert stepped == list(range(start, kill))
        assert not (tmp_path / "killed" / "seed42").exists()
    stepped.clear()
    stepped.kill = None
    train(world, tmp_path / "killed", runs, together, **changes)
    assert stepped[: STEPS - 16] == [16, 17], "the first run goes on from its last checkpoint"
    require_same(tmp_path / "killed", tmp_path / "undisturbed", runs)


def test_runs_that_are_done_are_not_trained_again(
    world: SmallWorld, stepped: Any, tmp_path: Path
) -> None:
    """Three runs, one after another; killed in the second, with all outputs deleted after."""
    runs = runs_of(world, "gap-init", 3)
    train(world, tmp_path / "undisturbed", runs, "never", checkpoint_steps=0)
    stepped.clear()
    original = training_group._train_alone

    def alone(model: Any, job: Any, one: Any, scratch: Path) -> Any:
        stepped.kill = 5 if one.goal.run.seed == 7 else None
        return original(model, job, one, scratch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training_group, "_train_alone", alone)
        train(world, tmp_path / "killed", runs, "never", checkpoint_steps=0)
    assert stepped == [*range(STEPS), *range(5)]
    assert [path.name[:15] for path in (tmp_path / "killed").iterdir()] == [".partial-seed42"]
    stepped.clear()
    stepped.kill = None
    train(world, tmp_path / "killed", runs, "never", checkpoint_steps=0)
    assert stepped == [*range(STEPS), *range(STEPS)], "two of three"
    require_same(tmp_path / "killed", tmp_path / "undisturbed", runs)


def interrupted(world: SmallWorld, folder: Path, stepped: Any) -> tuple[list[Run], Path]:
    """Kill a training of two runs behind its checkpoint; return the runs and the checkpoint."""
    runs = runs_of(world, "random-b", 2)
    stepped.kill = 10
    with pytest.raises(Killed):
        train(world, folder, runs, "always")
    stepped.clear()
    stepped.kill = None
    (checkpoint,) = folder.glob(".partial-*/checkpoint-*")
    assert checkpoint.name == "checkpoint-8"
    return runs, checkpoint


@pytest.mark.parametrize(
    "change", ["recipe", "truncated", "flipped", "extra", "no seal", "no file"]
)
def test_a_checkpoint_of_anything_else_is_not_taken_up(
    world: SmallWorld, change: str, stepped: Any, tmp_path: Path
) -> None:
    runs, checkpoint = interrupted(world, tmp_path / "runs", stepped)
    tensors = checkpoint / "state.safetensors"
    content = tensors.read_bytes()
    changes: dict[str, Any] = {}
    if change == "recipe":
        changes = {"learning_rate": 1e-4}
    elif change == "truncated":
        tensors.write_bytes(content[:-50])
    elif change == "flipped":
        tensors.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif change == "extra":
        (checkpoint / "optimizer.pt").write_bytes(b"")
    elif change == "no seal":
        (checkpoint / "seal.json").unlink()
    else:
        tensors.unlink()
    train(world, tmp_path / "runs", runs, "always", **changes)
    assert stepped == list(range(STEPS)), "from the beginning"
    train(world, tmp_path / "undisturbed", runs, "always", **changes)
    require_same(tmp_path / "runs", tmp_path / "undisturbed", runs)


def test_other_inputs_or_other_runs_do_not_take_it_up(
    world: SmallWorld, stepped: Any, tmp_path: Path
) -> None:
    runs, _ = interrupted(world, tmp_path, stepped)
    train(world, tmp_path, [runs[0], runs_of(world, "random-b", 3)[2]], "always")
    assert stepped == list(range(STEPS))


class Trap:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


def test_no_pickle_is_ever_loaded(
    world: SmallWorld, stepped: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Even one that is sealed: under every name that Trainer would look for."""
    runs, checkpoint = interrupted(world, tmp_path / "runs", stepped)
    trap = tmp_path / "executed"
    names = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "scaler.pt")
    for name in (*names, "training_args.bin", "optimizer.bin", "adapter_model.bin"):
        (checkpoint / name).write_bytes(pickle.dumps(Trap(trap)))
    identity = read_json(checkpoint / "seal.json")["identity"]
    (checkpoint / "seal.json").unlink()
    seal(checkpoint, identity)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle is loaded")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    train(world, tmp_path / "runs", runs, "always")
    assert not trap.exists()


def test_what_trainer_calls_is_still_what_is_overridden() -> None:
    """Where transformers renames one of these, a checkpoint would go through its pickles."""
    from transformers import Trainer

    for name in (
        "_save_checkpoint",
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "_load_rng_state",
        "_load_scaler",
        "_clip_grad_norm",
        "training_step",
        "get_train_dataloader",
    ):
        assert name in vars(Trainer) and name in vars(training_loop.RunsTrainer), name


def test_short_runs_write_no_checkpoint(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written: list[str] = []
    original = training_loop.seal
    monkeypatch.setattr(
        training_loop,
        "seal",
        lambda folder, identity: (written.append(folder.name), original(folder, identity)),
    )
    runs = runs_of(world, "random-b", 1)
    train(world, tmp_path / "a", runs, "auto", checkpoint_steps=STEPS)
    assert written == []
    train(world, tmp_path / "b", runs, "auto", checkpoint_steps=STEPS - 1)
    assert len(written) == 1
    require_same(tmp_path / "a", tmp_path / "b", runs)


def test_a_diverged_run_stays_diverged(world: SmallWorld, stepped: Any, tmp_path: Path) -> None:
    runs, checkpoint = interrupted(world, tmp_path, stepped)
    record = read_json(checkpoint / "state.json")
    record["failed"][1] = "it failed at step 6"
    forget_digests(checkpoint / "state.json")
    (checkpoint / "state.json").write_text(json.dumps(record))
    identity = read_json(checkpoint / "seal.json")["identity"]
    (checkpoint / "seal.json").unlink()
    seal(checkpoint, identity)
    with pytest.raises(GapinitError, match="^it failed at step 6$"):
        train(world, tmp_path, runs, "always")
    assert (tmp_path / "seed42" / "run.json").is_file()


PROGRAM = """
import sys, json
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {root!r})
from tests.small_backbone import SmallWorld
from tests.test_resume import runs_of, train
world = SmallWorld(Path({world!r}))
runs = runs_of(world, "gap-init", 2)
train(world, Path({folder!r}), runs, "always", checkpoint_steps=1)
"""


def test_killed_by_the_system(world: SmallWorld, tmp_path: Path) -> None:
    """SIGKILL to the process itself, again and again, whatever it is doing."""
    root = str(Path(__file__).parent.parent)

    def start(folder: Path) -> subprocess.Popen[bytes]:
        program = PROGRAM.format(root=root, world=str(world.root), folder=str(folder))
        return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)

    assert start(tmp_path / "undisturbed").wait() == 0
    kills = 0
    for wanted in (1, 5, 9, 14):
        process = start(tmp_path / "killed")
        while process.poll() is None:
            found = [
                int(path.name[11:]) for path in tmp_path.glob("killed/.partial-*/checkpoint-*")
            ]
            if found and max(found) >= wanted:
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.002)
    assert kills >= 3
    assert start(tmp_path / "killed").wait() == 0
    runs = runs_of(world, "gap-init", 2)
    require_same(tmp_path / "killed", tmp_path / "undisturbed", runs)
    weights = load_file(tmp_path / "killed/seed42/adapter/adapter_model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
