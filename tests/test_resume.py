"""A training that is killed resumes from its last checkpoint and ends in the same bytes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from gapinit.artifacts.artifacts import read_json
from gapinit.artifacts.checkpoints import seal
from gapinit.config.runs import Run
from gapinit.train.loop import RunTrainer

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
    "dropout": 0.2,
    "warmup_ratio": 0.3,
    "checkpoint_steps": 4,
}
STEPS = 18  # of two epochs of 18 batches, two a step


class Killed(BaseException):
    """Stands for a signal that no code of the training sees."""


class Steps(list[tuple[int, int]]):
    """Seed and number of the optimiser steps that are run; before `kill` the training ends."""

    kill: tuple[int, int] | None = None


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> Steps:
    seen = Steps()
    original = RunTrainer.training_step

    def step(self: Any, *arguments: Any, **named: Any) -> Any:
        here = (self.args.seed, self.state.global_step)
        if here == seen.kill:
            raise Killed
        if here not in seen[-1:]:
            seen.append(here)
        return original(self, *arguments, **named)

    monkeypatch.setattr(RunTrainer, "training_step", step)
    return seen


def steps_of(seed: int, start: int = 0, end: int = STEPS) -> list[tuple[int, int]]:
    return [(seed, step) for step in range(start, end)]


def runs_of(world: SmallWorld, method: str, *seeds: int) -> list[Run]:
    return [world.run(method, "naive", {"seed": it, "epochs": 2, "rank": 2}) for it in seeds]


def train(world: SmallWorld, folder: Path, runs: list[Run], **changes: Any) -> None:
    world.train_all({folder / f"seed{run.seed}": run for run in runs}, **RECIPE | changes)


def killed(
    world: SmallWorld,
    folder: Path,
    runs: list[Run],
    stepped: Steps,
    at: tuple[int, int],
    **changes: Any,
) -> list[tuple[int, int]]:
    """Train until the step `at`; return the steps that were run."""
    stepped.clear()
    stepped.kill = at
    with pytest.raises(Killed):
        train(world, folder, runs, **changes)
    seen = list(stepped)
    stepped.clear()
    stepped.kill = None
    return seen


def require_same(one: Path, two: Path, runs: list[Run]) -> None:
    for run in runs:
        for file in COMPARED:
            name = f"seed{run.seed}/{file}"
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert sorted(path.name for path in one.iterdir()) == sorted(f"seed{run.seed}" for run in runs)


@pytest.mark.parametrize(
    ("method", "group_by_length"),
    [("gap-init", True), ("pissa", False), ("dora", False), ("eva", True)],
)
def test_a_killed_training_ends_in_the_same_bytes(
    world: SmallWorld, method: str, group_by_length: bool, stepped: Steps, tmp_path: Path
) -> None:
    runs = runs_of(world, method, 42)
    changes = {"group_by_length": group_by_length}
    train(world, tmp_path / "undisturbed", runs, **changes)
    for kill, start in ((3, 0), (11, 0), (17, 8)):  # before a checkpoint, after, and once more
        seen = killed(world, tmp_path / "killed", runs, stepped, (42, kill), **changes)
        assert seen == steps_of(42, start, kill)
        assert not (tmp_path / "killed" / "seed42").exists()
    train(world, tmp_path / "killed", runs, **changes)
    assert stepped == steps_of(42, 16)
    require_same(tmp_path / "killed", tmp_path / "undisturbed", runs)


def test_runs_that_are_done_are_not_trained_again(
    world: SmallWorld, stepped: Steps, tmp_path: Path
) -> None:
    """Killed in the second of three runs, which resumes from its checkpoint."""
    runs = runs_of(world, "gap-init", 42, 7, 5)
    train(world, tmp_path / "undisturbed", runs)
    seen = killed(world, tmp_path / "killed", runs, stepped, (7, 5))
    assert seen == steps_of(42) + steps_of(7, 0, 5)
    assert not list(tmp_path.glob("killed/seed*")), "outputs appear when all runs are done"
    train(world, tmp_path / "killed", runs)
    assert stepped == steps_of(7, 4) + steps_of(5)
    require_same(tmp_path / "killed", tmp_path / "undisturbed", runs)


@pytest.fixture
def interrupted(world: SmallWorld, stepped: Steps, tmp_path: Path) -> tuple[list[Run], Path]:
    """A run in the folder `runs` that was killed after its checkpoint, and the checkpoint."""
    runs = runs_of(world, "random-b", 42)
    killed(world, tmp_path / "runs", runs, stepped, (42, 10))
    (checkpoint,) = tmp_path.glob("runs/.partial-*/checkpoint-8")
    return runs, checkpoint


@pytest.mark.parametrize(
    "change", ["recipe", "truncated", "flipped", "extra", "no seal", "no file"]
)
def test_a_checkpoint_that_is_damaged_or_of_another_training_is_ignored(
    world: SmallWorld,
    interrupted: tuple[list[Run], Path],
    change: str,
    stepped: Steps,
    tmp_path: Path,
) -> None:
    runs, checkpoint = interrupted
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
    else:
        (checkpoint / "seal.json" if change == "no seal" else tensors).unlink()
    train(world, tmp_path / "runs", runs, **changes)
    assert stepped == steps_of(42), "from the beginning"


class Trap:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


def test_no_pickle_is_ever_loaded(
    world: SmallWorld,
    interrupted: tuple[list[Run], Path],
    stepped: Steps,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Even one that is sealed: under every name that Trainer would look for."""
    runs, checkpoint = interrupted
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
    train(world, tmp_path / "runs", runs)
    assert stepped == steps_of(42, 8)
    assert not trap.exists()


def test_trainer_still_calls_what_is_overridden() -> None:
    """Where transformers renames one of these, a checkpoint would go through its pickles."""
    from transformers import Trainer

    for name in (
        "_save_checkpoint",
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "_load_rng_state",
        "_load_scaler",
        "get_train_dataloader",
        "log",
    ):
        assert name in vars(Trainer) and name in vars(RunTrainer), name
