"""The workflow and the library are one Gap-Init: the same gap, and the same adapter bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

import gapinit
from gapinit.adapters.methods.gap import module_gaps
from gapinit.adapters.methods.setup import Setup, adapt
from gapinit.backbones import load_backbone
from gapinit.data.dataset import prepare_dataset
from gapinit.gap.gap_file import estimate_gap_file
from gapinit.gap.layers import write_layers
from gapinit.states.states import calibration_pairs, extract_states
from gapinit.train.trunk.write import extract_trunk, read_trunk

from .backbone_cases import CASES, Case
from .small_backbone import DATASET, SmallWorld

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
PAIRS, NEIGHBOURS, SEED = 12, 3, 42
STARTS = [(1, 0.0, "unit"), (1, 0.5, "raw"), (8, 0.5, "unit")]
"""Rank, noise and its scale."""


@dataclass(frozen=True)
class Family:
    """The artifacts of one family up to its trunk, and what the library sees of it."""

    small: SmallWorld
    gap: gapinit.GapVectors
    layers: list[int]

    def plain(self) -> Any:
        model = AutoModelForImageTextToText.from_pretrained(
            self.small.backbone, dtype=torch.float32
        )
        return model.eval().requires_grad_(False)

    def with_lora(self, rank: int) -> Any:
        model = self.plain()
        targets = gapinit.target_modules(model, self.layers)
        return get_peft_model(model, LoraConfig(r=rank, target_modules=targets))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(DATASET), encoding="utf-8")
    prepare_dataset(folder / "tiny.yaml", folder / "data")
    return folder / "data"


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def family(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Family:
    torch.set_num_threads(1)
    case: Case = request.param
    small = SmallWorld(tmp_path_factory.mktemp(case.name))
    (small.root / "data").symlink_to(data)
    case.write(small.backbone)
    # Whole captions: the library cuts at the model's positions alone.
    longest = load_backbone(small.backbone).text_positions or 512
    extract_states(
        small.backbone, small.manifest, small.states, pairs=PAIRS, seed=0,
        max_caption_tokens=longest,
    )  # fmt: skip
    estimate_gap_file(
        [small.states], small.gap, size=PAIRS, heldout=0, neighbours=NEIGHBOURS,
        alpha_semantic=1.0, alpha_geometric=1.0, smoothing="spot",
    )  # fmt: skip
    write_layers(small.gap, small.layers, num_layers=2, exclude_bottom=0)
    extract_trunk(small.backbone, small.manifest, small.layers, "naive", small.trunk("naive"))
    gap = gapinit.GapVectors.load(small.gap)
    return Family(small, gap, [gap.num_layers - 2, gap.num_layers - 1])


def test_an_adapter_of_the_workflow_is_the_librarys(family: Family, tmp_path: Path) -> None:
    small = family.small
    goals = {}
    for rank, noise, scale in STARTS:
        options = {"rank": rank, "noise": noise, "noise_scale": scale, "seed": SEED}
        goals[tmp_path / f"{rank}-{scale}"] = small.run("gap-init", "naive", options)
    # One step that is too small to move anything but a zero.
    small.train_all(goals, learning_rate=1e-30, batch_size=200)
    for output, run in goals.items():
        model = family.with_lora(run.rank)
        gapinit.initialize_lora_gap_weights(
            model,
            family.gap,
            noise=run.noise,
            noise_scale=run.noise_scale,
            generator=torch.Generator().manual_seed(SEED),
        )
        require_equal(load_file(output / "adapter" / "adapter_model.safetensors"), model)


@pytest.mark.parametrize("rank", [1, 8])
def test_an_adapter_along_the_gap_of_modules_is_the_librarys(family: Family, rank: int) -> None:
    backbone = load_backbone(family.small.backbone)
    if backbone.cross_attends:
        pytest.skip("nothing of an image is at a module's output")
    backbone.cut_below(family.layers[0])  # as in training
    trunk = read_trunk(family.small.trunk("naive"))
    batches = [trunk.batch(range(20)), trunk.batch(range(20, 40))]
    gaps = module_gaps(backbone, family.layers, batches)
    setup = Setup(
        backbone, family.layers, rank, 2.0 * rank, 0.0, family.gap, 0.0, "unit",
        torch.Generator().manual_seed(SEED), first_batches=lambda _: batches,
    )  # fmt: skip
    found = get_peft_model_state_dict(adapt("gap-module", setup).model)
    model = family.with_lora(rank)
    gapinit.initialize_lora_gap_weights(
        model,
        replace(family.gap, modules=gaps),
        coordinates="module",
        generator=torch.Generator().manual_seed(SEED),
    )
    require_equal(found, model)


def require_equal(found: dict[str, Tensor], model: Any) -> None:
    expected = get_peft_model_state_dict(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if ".lora_A." in name:
            assert not value.any() and found[name].abs().max() < 1e-29, name
        else:
            assert torch.equal(found[name], value), name


def test_the_gap_of_the_workflow_is_the_librarys(family: Family) -> None:
    small = family.small
    pairs = [
        (image.path, caption)
        for image, caption in calibration_pairs(small.images("train"), PAIRS, 0, "tiny")
    ]
    backbone = load_backbone(small.backbone)
    gap = gapinit.estimate_gap(
        family.plain(), backbone.processor, pairs, neighbours=NEIGHBOURS, batch_size=PAIRS,
        progress=False,
    )  # fmt: skip
    for name in ("layers", "num_layers", "pairs", "pooling", "neighbours"):
        assert getattr(gap, name) == getattr(family.gap, name), name
    for found, expected in zip(gap.vectors, family.gap.vectors, strict=True):
        assert torch.linalg.vector_norm(found - expected) < 1e-6 * torch.linalg.vector_norm(
            expected
        )
    torch.testing.assert_close(gap.spot_scores, family.gap.spot_scores, rtol=1e-6, atol=0)


def test_a_gap_file_is_refused_on_another_model(family: Family, tmp_path: Path) -> None:
    model = family.with_lora(1)
    report = gapinit.initialize_lora_gap_weights(model, family.gap)
    assert report.weights_compared > 20 and report.weights_skipped == 0
    family.gap.save(tmp_path / "gap.safetensors")
    again = gapinit.GapVectors.load(tmp_path / "gap.safetensors")
    assert torch.equal(again.vectors, family.gap.vectors)
    with torch.no_grad():
        model.get_base_model().get_input_embeddings().weight.mul_(2)  # says nothing of the gap
        gapinit.alignment(model, again)
        next(model.get_base_model().parameters()).mul_(1.1)
    for gap in (family.gap, again):
        with pytest.raises(gapinit.GapinitError, match="measured on another model"):
            gapinit.initialize_lora_gap_weights(model, gap)
