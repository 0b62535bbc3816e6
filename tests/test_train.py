"""Training: the cached run is the whole model's run, step by step, and repeats bit for bit."""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup, set_seed

from gapinit.adapters.lora import add_lora
from gapinit.adapters.methods.setup import Setup, adapt
from gapinit.artifacts.artifacts import read_json, sha256
from gapinit.backbones import load_backbone
from gapinit.errors import GapinitError
from gapinit.gap.gap_file import estimate_gap_file, read_gap
from gapinit.gap.gap_vectors import GapVectors
from gapinit.states.states import extract_states
from gapinit.train.tail_module import Tail
from gapinit.train.trunk.write import Trunk, extract_trunk, read_trunk

from .method_cases import CHANGE_BASE
from .plain_json import names
from .small_backbone import (
    LAYERS,
    SmallWorld,
    make_backbone,
    reference_batch,
    small_world,
    trainable,
)

# The tests call plain PEFT, which asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def run(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of Gap-Init, with everything at its default."""
    return world.train(tmp_path_factory.mktemp("run") / "gap-init")


@pytest.fixture(scope="module")
def other_backbone(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "backbone"
    captions = [text for image in world.images("train") for text in image.captions]
    make_backbone(folder, captions, seed=77)
    return folder


def steps(output: Path) -> list[dict[str, float]]:
    with open(output / "steps.csv", encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The captions of every batch that is drawn, in order, those before the run included."""
    drawn: list[list[int]] = []
    original = Trunk.batch

    def batch(self: Trunk, indices: Sequence[int]) -> dict[str, Tensor]:
        drawn.append(list(indices))
        return original(self, indices)

    monkeypatch.setattr(Trunk, "batch", batch)
    return drawn


@pytest.mark.parametrize(
    ("strategy", "method"),
    [("naive", "gap-init"), ("gg-safe", "lora-kaiming"), ("all", "gap-init")],
)
def test_every_step_is_the_whole_models(
    world: SmallWorld, strategy: str, method: str, batches: list[list[int]], tmp_path: Path
) -> None:
    """20 steps from cached states, and the same 20 of the whole model in a plain loop."""
    rate = 2e-3
    output = world.train(
        tmp_path / "run", method, strategy=strategy, dropout=0.0, batch_size=6, learning_rate=rate
    )
    logged = steps(output)
    assert len(logged) == 20
    set_seed(42)
    backbone = load_backbone(world.backbone)
    gap = GapVectors.load(world.gap)
    scheme = Setup(backbone, LAYERS[strategy], 1, 2.0, 0.0, gap, 0.0, "unit", torch.Generator())
    model = adapt(method, scheme).model
    learned = list(trainable(model).values())
    optimiser = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimiser, 0, 20)
    for row, batch in zip(logged, batches[-20:], strict=True):
        loss = model(**reference_batch(world, batch)).loss
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
        optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(learned, 1.0)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert row["learning_rate"] == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        optimiser.step()
        schedule.step()
    saved = load_file(output / "adapter" / "adapter_model.safetensors")
    for name, value in trainable(model).items():
        found = saved[name.replace(".default", "")]
        assert torch.linalg.vector_norm(found - value) < 1e-2 * torch.linalg.vector_norm(value)


@pytest.mark.parametrize("group_by_length", [False, True])
def test_data_driven_methods_see_the_batches_that_the_run_begins_with(
    world: SmallWorld, batches: list[list[int]], group_by_length: bool, tmp_path: Path
) -> None:
    """The gradient's batch is the first step's; another method's draw of it moves nothing."""
    changes = {"batch_size": 50, "group_by_length": group_by_length, "epochs": 2}
    world.train(tmp_path / "plain", "random-b", **changes)
    trained = batches[-6:]
    assert batches[:-6] == trained[:1]
    batches.clear()
    world.train(tmp_path / "measured", "gap-module", **changes)
    assert batches[-6:] == trained
    assert batches[:-6] == trained[:1] + trained[:3], "256 samples are wanted, 120 are there"


def test_the_gradients_share_along_the_gap_is_that_of_the_first_batch(
    world: SmallWorld, batches: list[list[int]], tmp_path: Path
) -> None:
    """Against the whole model: |u^T G|^2 / |G|^2 of each weight, whatever the method."""
    shares = [
        read_json(world.train(tmp_path / method, method) / "run.json")["gradient_share"]
        for method in ("gap-init", "pissa", "eva", "loftq")
    ]
    model = world.stock_model()
    weights = {
        name: weight
        for name, weight in model.named_parameters()
        if re.search(r"decoder\.layers\.[12]\.(self_attn\..*_proj|fc[12])\.weight", name)
    }
    for weight in weights.values():
        weight.requires_grad_(True)
    model(**reference_batch(world, batches[0])).loss.backward()
    expected = []
    for name, weight in weights.items():
        gap = read_gap(world.gap).gap[int(name.split(".layers.")[1][0])]
        direction = weight.detach().double().numpy() @ gap if "fc1" in name else gap
        gradient = weight.grad.double().numpy()
        seen = direction @ gradient / np.linalg.norm(direction)
        expected.append((seen**2).sum() / (gradient**2).sum())
    assert len(expected) == 12
    assert shares == pytest.approx([np.mean(expected)] * 4, rel=1e-4)


@pytest.mark.parametrize("group_by_length", [False, True])
def test_every_caption_is_seen_once_an_epoch(
    world: SmallWorld, batches: list[list[int]], group_by_length: bool, tmp_path: Path
) -> None:
    """A step is the mean of its batches, fewer at an epoch's end; the rate moves no weight."""
    changes = {"batch_size": 16, "gradient_accumulation": 3, "learning_rate": 1e-12}
    changes |= {"epochs": 2, "group_by_length": group_by_length}
    output = world.train(tmp_path / "run", **changes)
    del batches[:-16]
    assert [len(batch) for batch in batches] == [16] * 7 + [8] + [16] * 7 + [8]
    first, second = batches[:8], batches[8:]
    for epoch in (first, second):
        assert sorted(index for batch in epoch for index in batch) == list(range(120))
    assert first != second
    lengths = np.diff(read_trunk(world.trunk("naive")).offset)
    spread = np.mean([np.std(lengths[batch]) for batch in batches])
    assert (spread < 0.5 * np.std(lengths)) == group_by_length
    rows = steps(output)
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert list(rows[0]) == ["step", "loss", "grad_norm", "learning_rate", "alignment"]
    backbone = load_backbone(world.backbone)
    with torch.no_grad():
        losses = [backbone.model(**reference_batch(world, it)).loss.item() for it in first]
    expected = [np.mean(losses[start : start + 3]) for start in (0, 3, 6)]
    assert [row["loss"] for row in rows[:3]] == pytest.approx(expected, rel=1e-5)


def test_runs_of_one_process_end_as_each_alone(world: SmallWorld, tmp_path: Path) -> None:
    """Bit for bit: nothing of one run is left in the model that the next one gets."""
    kinds = [("gap-init", 42), *((name, 42) for name in CHANGE_BASE), ("gap-init", 43)]
    runs = [world.run(name, "naive", {"rank": 2, "seed": seed}) for name, seed in kinds]
    world.train_all({tmp_path / f"shared{i}": run for i, run in enumerate(runs)}, dropout=0.3)
    files = ("adapter/adapter_model.safetensors", "steps.csv", "run.json")
    for i, run in enumerate(runs):
        torch.manual_seed(99)  # whatever ran before
        world.train_all({tmp_path / f"alone{i}": run}, dropout=0.3)
        for file in files:
            one, two = (tmp_path / f"{name}{i}" / file for name in ("shared", "alone"))
            assert one.read_bytes() == two.read_bytes(), (run.method, file)


def test_runs_that_cannot_share_a_process(world: SmallWorld, tmp_path: Path) -> None:
    one, two = (world.run("random-b", "naive", {"seed": seed}) for seed in (1, 2))
    other = replace(one, backbone="other")
    with pytest.raises(GapinitError, match=r"has the backbone 'other', run .* has 'tiny'"):
        world.train_all({tmp_path / "a": one, tmp_path / "b": other})
    with pytest.raises(GapinitError, match=r"has the layers 'all', run .* has 'naive'"):
        world.train_all({tmp_path / "a": one, tmp_path / "b": replace(one, layers="all")})
    with pytest.raises(GapinitError, match="--run: the same value is given twice"):
        world.train_all({tmp_path / "a": one, tmp_path / "b": one})
    with pytest.raises(GapinitError, match="--output: the same value is given twice"):
        world.train_all({tmp_path / "a": one, tmp_path / "x/../a": two})
    assert list(tmp_path.iterdir()) == []


def test_learning_rate_follows_the_recipe(run: Path, world: SmallWorld, tmp_path: Path) -> None:
    rates = [row["learning_rate"] for row in steps(run)]
    assert rates == pytest.approx([1e-4 * (1 + math.cos(math.pi * done / 5)) for done in range(5)])
    warm = world.train(tmp_path / "warm", warmup_ratio=0.4, scheduler="linear", learning_rate=3e-4)
    rates = [row["learning_rate"] for row in steps(warm)]
    assert rates == pytest.approx([0.0, 1.5e-4, 3e-4, 2e-4, 1e-4])


def test_alignment_starts_where_the_method_points(
    run: Path, world: SmallWorld, tmp_path: Path
) -> None:
    rows = steps(run)
    assert rows[0]["alignment"] == pytest.approx(1.0, abs=1e-6)
    assert all(0 < row["alignment"] < 1 for row in rows[2:]), "B is trained too"
    noisy = world.train(tmp_path / "noisy", noise=1.0, noise_scale="unit")
    expected = read_json(noisy / "run.json")["noise_cosine"]
    assert 0.4 < expected < 0.95
    assert steps(noisy)[0]["alignment"] == pytest.approx(expected, abs=0.12)


def test_dropout_is_in_the_adapters_alone(world: SmallWorld) -> None:
    trunk = read_trunk(world.trunk("naive"))
    for dropout, moves in ((0.0, False), (0.5, True)):
        backbone = load_backbone(world.backbone)
        layers: Any = backbone.decoder_layers
        for layer in layers:
            layer.dropout = layer.self_attn.dropout = 0.5  # as OPT's own dropout would be
        backbone.cut_below(1)
        model = add_lora(backbone, [1, 2], rank=1, alpha=2, dropout=dropout, init_lora_weights=True)
        with torch.no_grad():
            for value in trainable(model).values():
                value.fill_(0.3)
        tail = Tail(model, backbone)
        tail.train()
        names = {name for name, module in tail.named_modules() if module.training}
        assert all("lora_dropout" in name for name in names) and len(names) >= 12
        batch = trunk.batch([0, 1, 2])
        assert (tail(**batch)["loss"] != tail(**batch)["loss"]) == moves
        tail.eval()
        assert not any(module.training for module in tail.modules())
        assert tail(**batch)["loss"] == tail(**batch)["loss"]


def test_dropout_reaches_the_run(world: SmallWorld, run: Path, tmp_path: Path) -> None:
    without = steps(world.train(tmp_path / "without", dropout=0.0))
    usual = steps(run)
    assert usual[0]["loss"] == without[0]["loss"], "A = 0: nothing to drop"
    assert usual[0]["grad_norm"] != without[0]["grad_norm"]


def test_a_loss_that_is_not_finite_names_the_step(world: SmallWorld, tmp_path: Path) -> None:
    with pytest.raises(GapinitError, match=r"not finite at step [2-5]: lower training.learning_r"):
        world.train(tmp_path / "run", learning_rate=1e25)
    assert list(tmp_path.iterdir()) == []


def test_the_record_of_a_run(run: Path, world: SmallWorld) -> None:
    record = read_json(run / "run.json")
    rows = steps(run)
    assert names(run) == ["adapter", "process.json", "run.json", "steps.csv"]
    assert [path.name for path in run.parent.iterdir()] == [run.name], "nothing is left to wait"
    assert record["factors"]["method"] == "gap-init" and record["factors"]["seed"] == 42
    assert record["recipe"]["alpha"] == 2.0 and record["recipe"]["batch_size"] == 24
    assert record["recipe"]["max_tokens"] == 32 and record["recipe"]["dropout"] == 0.05
    assert record["layers"] == LAYERS["naive"]
    # rank 1: d_in + d_out for q, k, v, out (32, 32), fc1 (32, 128) and fc2 (128, 32), two layers
    assert record["trainable_parameters"] == 2 * (4 * 64 + 2 * 160)
    assert record["first_grad_norm"] == rows[0]["grad_norm"] > 0
    assert record["final_loss"] == rows[-1]["loss"]
    assert record["noise_cosine"] is None and record["changes_base"] is False
    assert len(record["alignment_at_init"]) == 12
    assert record["inputs"]["gap"] == sha256(world.gap)
    assert record["inputs"]["layers"] == sha256(world.layers)
    assert record["inputs"]["backbone"] == record["inputs"]["trunk"]["backbone"]
    assert {"torch", "transformers", "peft"} <= set(record["versions"])
    process = read_json(run / "process.json")
    assert process["seconds"] > 0 and process["peak_memory_mb"] > 100 and process["threads"] == 1
    assert not set(process) & set(record), "what no number depends on lies apart"


def test_alignment_at_init_is_against_the_heldout_gap(run: Path, world: SmallWorld) -> None:
    gaps = read_gap(world.gap)
    assert gaps.heldout_gap is not None
    used, other = torch.from_numpy(gaps.gap), torch.from_numpy(gaps.heldout_gap)
    weights = dict(world.stock_model().named_modules())
    expected = []
    for name in load_file(run / "adapter" / "adapter_model.safetensors"):
        if not name.endswith("lora_B.weight"):
            continue
        layer = int(name.split(".layers.")[1][0])
        pair = torch.stack([used[layer], other[layer]])
        if ".fc1." in name:
            module: Any = weights[name.removeprefix("base_model.model.").split(".lora_")[0]]
            pair = pair @ module.weight.double().T
        expected.append(torch.cosine_similarity(pair[0], pair[1], dim=0).item())
    found = read_json(run / "run.json")["alignment_at_init"]
    assert sorted(found) == pytest.approx(sorted(expected), abs=1e-6)
    assert max(found) < 0.9999


def train_with(world: SmallWorld, output: Path, **paths: Any) -> None:
    class Elsewhere(SmallWorld):
        backbone = paths.get("backbone", world.backbone)
        gap = paths.get("gap", world.gap)

        def trunk(self, strategy: str) -> Path:
            return Path(paths.get("trunk", world.trunk(strategy)))

    Elsewhere(world.root).train(output, strategy=paths.get("strategy", "naive"))


def test_inputs_that_do_not_belong_together(
    world: SmallWorld, other_backbone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with pytest.raises(GapinitError, match=r"trunk_naive.h5: made from another backbone"):
        train_with(world, output, backbone=other_backbone)
    trunk = tmp_path / "trunk.h5"
    extract_trunk(other_backbone, world.manifest, world.layers, "naive", trunk)
    with pytest.raises(GapinitError, match=r"trunk.h5: made from another backbone"):
        train_with(world, output, trunk=trunk)
    with pytest.raises(GapinitError, match=r"gap.h5: made from another backbone"):
        train_with(world, output, trunk=trunk, backbone=other_backbone)
    with pytest.raises(GapinitError, match=r"trunk_naive.h5: starts at layer 1, but layer 0 is"):
        train_with(world, output, trunk=world.trunk("naive"), strategy="all")
    with pytest.raises(GapinitError, match="has no adapter to train"):
        world.train(output, "zero-shot", rank=None)
    assert not output.exists()


def test_half_precision(world: SmallWorld, tmp_path: Path) -> None:
    """A backbone in bfloat16, as large ones are: cached float32 states go through all stages."""
    model = world.stock_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    world.stock_processor().save_pretrained(tmp_path / "half")
    assert load_backbone(tmp_path / "half").model.dtype == torch.bfloat16
    half = {name: tmp_path / f"{name}.h5" for name in ("states", "gap", "trunk")}
    extract_states(tmp_path / "half", world.manifest, half["states"], pairs=20, seed=0)
    estimate_gap_file(
        [half["states"]], half["gap"], size=12, heldout=8, neighbours=3,
        alpha_semantic=1.0, alpha_geometric=1.0, smoothing="spot",
    )  # fmt: skip
    found = torch.from_numpy(read_gap(half["gap"]).gap)
    expected = torch.from_numpy(read_gap(world.gap).gap)
    assert torch.cosine_similarity(found, expected, dim=1).min() > 0.99
    extract_trunk(tmp_path / "half", world.manifest, world.layers, "naive", half["trunk"])
    output = tmp_path / "run"
    train_with(world, output, backbone=tmp_path / "half", gap=half["gap"], trunk=half["trunk"])
    full = steps(world.train(tmp_path / "full"))
    assert [row["loss"] for row in steps(output)] == pytest.approx(
        [row["loss"] for row in full], rel=0.03
    )


def test_no_stage_prints_what_a_user_cannot_act_on(world: SmallWorld, tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from gapinit.config.recipe import Recipe
from gapinit.config.runs import Run
from gapinit.evaluate.predict import extract_features, predict
from gapinit.states.states import extract_states
from gapinit.train.train import train_run
from gapinit.train.trunk.write import extract_trunk
world, out = Path({str(world.root)!r}), Path({str(tmp_path)!r})
backbone, manifest, layers = world / "backbone", world / "data/manifest.json", world / "layers.json"
extract_states(backbone, manifest, out / "states.h5", pairs=4, seed=0)
extract_trunk(backbone, manifest, layers, "naive", out / "trunk.h5")
run = Run("tiny", "tiny", "pissa", 1, "naive", 1, seed=1)
train_run(run, backbone, out / "trunk.h5", layers, world / "gap.h5", out / "run",
          recipe=Recipe(batch_size=60))
extract_features(backbone, manifest, out / "features.h5")
predict(backbone, manifest, out / "features.h5", out / "run/adapter", out / "captions.json",
        num_beams=2, max_new_tokens=4, batch_size=8)
"""
    command = [sys.executable, "-W", "default", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    kept = [line for line in done.stderr.splitlines() if "DeprecationWarning" not in line]
    assert (done.returncode, done.stdout, kept) == (0, "", [])
