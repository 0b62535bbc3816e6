"""Several runs in one pass end as each does alone, and the one of them that fails is named."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gapinit.artifacts.artifacts import read_json
from gapinit.backbones import load_backbone
from gapinit.config.methods import METHODS
from gapinit.config.runs import Run
from gapinit.errors import GapinitError
from gapinit.train import loop as training_loop
from gapinit.train import train
from gapinit.train.step_log import STEP_COLUMNS
from gapinit.train.together import Slices, StackedLora, StackedTail

from .small_backbone import SmallWorld, small_world

PLAIN = [name for name, method in METHODS.items() if method.plain]
SEEDS = (42, 7, 123)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each stack that is made has."""
    made: list[int] = []
    original = StackedTail.__init__

    def init(self: StackedTail, *arguments: Any) -> None:
        made.append(len(arguments[2]))
        original(self, *arguments)

    monkeypatch.setattr(StackedTail, "__init__", init)
    return made


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone in float64: what differs then is not rounding, which Adam's division by the
    size of a gradient that is nearly zero makes large."""

    def load(folder: Path, device: str) -> Any:
        backbone = load_backbone(folder, device)
        backbone.model.double()
        return backbone

    monkeypatch.setattr(train, "load_backbone", load)


def steps(folder: Path) -> list[dict[str, float]]:
    with open(folder / "steps.csv", encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def both_ways(
    world: SmallWorld, folder: Path, runs: list[Run], **changes: Any
) -> list[tuple[Path, Path]]:
    """Train runs in one pass and each in a process of its own; return the folders of each."""
    pairs = [(folder / f"together{i}", folder / f"alone{i}") for i in range(len(runs))]
    goals = {pair[0]: run for pair, run in zip(pairs, runs, strict=True)}
    world.train_all(goals, together="always", **changes)
    for (_, output), run in zip(pairs, runs, strict=True):
        torch.manual_seed(99)  # whatever ran before
        world.train_all({output: run}, **changes)
    return pairs


def require_equal(together: Path, alone: Path, rel: float = 1e-5) -> None:
    """Every step's row and the final weights, and all that is recorded of the run."""
    one, two = steps(together), steps(alone)
    assert len(one) == len(two) > 0
    for key in STEP_COLUMNS:
        found, expected = ([row[key] for row in rows] for rows in (one, two))
        assert found == pytest.approx(expected, rel=rel, abs=rel * (key == "alignment")), key
    weights = [
        load_file(folder / "adapter/adapter_model.safetensors") for folder in (together, alone)
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[1].items():
        difference = torch.linalg.vector_norm(weights[0][name] - value)
        assert difference <= rel * torch.linalg.vector_norm(value), name
    configs = [read_json(folder / "adapter/adapter_config.json") for folder in (together, alone)]
    assert configs[0] == configs[1]
    records = [read_json(folder / "run.json") for folder in (together, alone)]
    for key in ("first_grad_norm", "final_loss"):
        assert records[0].pop(key) == pytest.approx(records[1].pop(key), rel=rel)
    assert records[0] == records[1]


def seeds_of(world: SmallWorld, method: str, **changes: Any) -> list[Run]:
    return [world.run(method, "naive", {"seed": seed} | changes) for seed in SEEDS]


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("method", PLAIN)
def test_seeds_end_as_alone(
    world: SmallWorld, method: str, rank: int, double: None, stacks: list[int], tmp_path: Path
) -> None:
    if METHODS[method].even_rank and rank % 2:
        pytest.skip("defined for even ranks only")
    if method == "mica":
        pytest.skip("PEFT's MiCA takes no float64; it is compared in single precision")
    runs = seeds_of(world, method, rank=rank)
    for pair in both_ways(world, tmp_path, runs, learning_rate=1e-3):
        require_equal(*pair, rel=1e-6)
    assert stacks == [3]
    losses = {tuple(row["loss"] for row in steps(tmp_path / f"alone{i}")) for i in range(3)}
    assert len(losses) == 3, "seeds differ"


@pytest.mark.parametrize("group_by_length", [False, True])
def test_dropout_accumulation_epochs_and_lengths(
    world: SmallWorld, group_by_length: bool, double: None, stacks: list[int], tmp_path: Path
) -> None:
    """Small batches differ in width, so those of some runs are padded; masks are the runs' own."""
    runs = seeds_of(world, "gap-init", epochs=2)
    changes: dict[str, Any] = {"dropout": 0.3, "batch_size": 7, "gradient_accumulation": 4}
    changes |= {"group_by_length": group_by_length, "weight_decay": 0.1, "max_grad_norm": 0.2}
    pairs = both_ways(world, tmp_path, runs, learning_rate=1e-3, **changes)
    for pair in pairs:
        require_equal(*pair, rel=1e-6)
        assert len(steps(pair[1])) == 2 * 5
        assert max(row["grad_norm"] for row in steps(pair[1])) > 0.2, "there is clipping"
    assert stacks == [3]


@pytest.mark.parametrize("method", ["gap-init", "random-b-frozen-b", "lora-gaussian", "mica"])
def test_in_single_precision(
    world: SmallWorld, method: str, stacks: list[int], tmp_path: Path
) -> None:
    runs = seeds_of(world, method)
    for pair in both_ways(world, tmp_path, runs, dropout=0.05, learning_rate=1e-4):
        require_equal(*pair)
    assert stacks == [3]


def test_noise_levels_are_stacked_and_other_ranks_are_not(
    world: SmallWorld, stacks: list[int], tmp_path: Path
) -> None:
    runs = [
        world.run("gap-init", "naive", {"noise": noise, "noise_scale": scale})
        for noise, scale in ((0.0, None), (0.5, "unit"), (2.0, "raw"))
    ]
    runs.append(world.run("gap-init", "naive", {"rank": 2}))
    for pair in both_ways(world, tmp_path, runs, learning_rate=1e-4):
        require_equal(*pair)
    assert stacks == [3]


def test_methods_that_change_the_base_follow_one_another(
    world: SmallWorld, stacks: list[int], tmp_path: Path
) -> None:
    """Bit for bit as alone: nothing of one run is left in the model that the next one gets."""
    names = [name for name, method in METHODS.items() if method.module and not method.plain]
    runs = [world.run(name, "naive", {"rank": 2}) for name in [*names, "pissa"]]
    runs[-1] = world.run("pissa", "naive", {"rank": 2, "seed": 5})
    for together, alone in both_ways(world, tmp_path, runs):
        for file in ("adapter/adapter_model.safetensors", "steps.csv", "run.json"):
            assert (together / file).read_bytes() == (alone / file).read_bytes(), (together, file)
    assert stacks == []


def test_never_and_auto(world: SmallWorld, stacks: list[int], tmp_path: Path) -> None:
    runs = seeds_of(world, "random-b")[:2]
    world.train_all({tmp_path / "a": runs[0], tmp_path / "b": runs[1]}, together="never")
    assert stacks == []
    world.train_all({tmp_path / "c": runs[0], tmp_path / "d": runs[1]})
    assert stacks == [2]
    process = read_json(tmp_path / "c" / "process.json")
    assert process["in_one_pass"] == [run.path for run in runs]


def test_a_run_that_diverges_is_named_and_the_others_end(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One run's B is made infinite: its step is told, and the other's numbers are untouched."""
    runs = seeds_of(world, "lora-kaiming")[:2]
    original = training_loop.RunsTrainer.training_step

    def spoil(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == 2 and len(self.logs) > 1:
            with torch.no_grad():
                next(module for module in self.tail.modules() if isinstance(module, StackedLora)).b[
                    1
                ] = torch.inf
        return original(self, *arguments, **named)

    monkeypatch.setattr(training_loop.RunsTrainer, "training_step", spoil)
    outputs = [tmp_path / "one", tmp_path / "two"]
    with pytest.raises(GapinitError, match=rf"^{runs[1].path}: the loss .* at step 3: lower"):
        world.train_all(dict(zip(outputs, runs, strict=True)))
    assert not outputs[1].exists()
    world.train_all({tmp_path / "alone": runs[0]})
    require_equal(outputs[0], tmp_path / "alone")


def test_runs_that_cannot_share_a_process(world: SmallWorld, tmp_path: Path) -> None:
    one, two = seeds_of(world, "random-b")[:2]
    other = Run("other", "tiny", "random-b", 1, "naive", 1, seed=4)
    with pytest.raises(GapinitError, match=r"has the backbone 'other', run .* has 'tiny'"):
        world.train_all({tmp_path / "a": one, tmp_path / "b": other})
    layers = Run("tiny", "tiny", "random-b", 1, "all", 1, seed=4)
    with pytest.raises(GapinitError, match=r"has the layers 'all', run .* has 'naive'"):
        world.train_all({tmp_path / "a": one, tmp_path / "b": layers})
    with pytest.raises(GapinitError, match="--run: the same one is given twice"):
        world.train_all({tmp_path / "a": one, tmp_path / "b": one})
    with pytest.raises(GapinitError, match="--output: the same one is given twice"):
        world.train_all({tmp_path / "a": one, tmp_path / "x/../a": two})
    assert list(tmp_path.iterdir()) == []


def test_rows_of_no_known_run_are_refused() -> None:
    """A family that reads other rows than a batch's positions is told, not mixed up."""
    slices = Slices(2)
    labels = torch.tensor([[-100, 1, 2], [-100, 1, -100]])
    assert slices.enter({"labels": labels, "length": torch.tensor([3, 2])}) == [2, 1]
    for shape, counts in (
        ((2, 3, 5), [3, 3]),
        ((6, 5), [3, 3]),
        ((2, 9, 5), [9, 9]),
        ((3, 5), [2, 1]),
        ((4, 5), [2, 2]),
    ):
        assert slices.counts(torch.zeros(shape)) == counts
    with pytest.raises(GapinitError, match="10 rows of 2 samples of width 3 are of no known run"):
        slices.counts(torch.zeros(10, 5))


def test_slices_of_unequal_length_get_their_own_adapters() -> None:
    """Labelled positions alone, as the highest layer may read them: against a plain loop."""
    from types import SimpleNamespace

    from gapinit.adapters.lora import ADAPTER
    from gapinit.train.together import Weights

    base = torch.nn.Linear(6, 4)
    layer = SimpleNamespace(
        get_base_layer=lambda: base,
        scaling={ADAPTER: 2.0},
        lora_dropout={ADAPTER: torch.nn.Identity()},
    )
    weights = [Weights(torch.randn(3, 6), torch.randn(4, 3), True) for _ in range(2)]
    slices = Slices(2)
    labels = torch.tensor([[-100, 1, 2], [-100, 1, -100]])
    slices.enter({"labels": labels, "length": torch.tensor([3, 2])})
    states = torch.randn(3, 6)
    found = StackedLora(layer, weights, slices, [])(states)
    run = [0, 0, 1]
    for row in range(3):
        own = weights[run[row]]
        expected = base(states[row]) + 2.0 * own.b @ own.a @ states[row]
        np.testing.assert_allclose(found[row].detach(), expected.detach(), rtol=1e-5, atol=1e-6)
