"""Training on each kind of trunk is training the whole model: step by step the same loss."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gapinit.adapters.files import load_adapter
from gapinit.adapters.lora import add_lora
from gapinit.artifacts.arrays import BITS
from gapinit.artifacts.artifacts import read_json, write_json
from gapinit.backbones import load_backbone
from gapinit.backbones.generation import generate
from gapinit.backbones.tail import tail_loss
from gapinit.config.recipe import Recipe
from gapinit.config.runs import Run
from gapinit.data.images import load_image
from gapinit.data.manifest import read_manifest
from gapinit.errors import GapinitError
from gapinit.evaluate.predict import extract_features, predict
from gapinit.gap.gap_file import estimate_gap_file
from gapinit.states.states import extract_states
from gapinit.train.step_log import read_steps
from gapinit.train.train import train_run
from gapinit.train.trunk.write import extract_trunk, read_trunk, trunk_mode

from .backbone_cases import CASES, Case, World, case_named
from .small_backbone import randomise, trainable

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
TOKENS = 24
STEPS = 30
BATCH = 8


@dataclass(frozen=True)
class Family:
    """A small backbone of one family, and what training on a dataset needs."""

    backbone: Path
    root: Path
    manifest: Path

    def trunk(self, strategy: str, mode: str, **options: Any) -> Path:
        """Return the trunk of a strategy and mode, made once."""
        name = "_".join([strategy, mode, *map(str, options.values())])
        path = self.root / f"{name}.h5"
        if not path.exists():
            layers = self.root / "layers.json"
            extract_trunk(
                self.backbone,
                self.manifest,
                layers,
                strategy,
                path,
                mode=mode,  # type: ignore[arg-type]
                max_tokens=TOKENS,
                **options,
            )
        return path

    def train(self, output: Path, strategy: str, mode: str, method: str = "lora-kaiming") -> Path:
        """Train `STEPS` steps or a few more."""
        run = Run("tiny", "tiny", method, rank=2, layers=strategy, epochs=2, seed=7)
        train_run(
            run,
            self.backbone,
            self.trunk(strategy, mode),
            self.root / "layers.json",
            self.root / "gap.h5",
            output,
            recipe=Recipe(batch_size=BATCH, learning_rate=2e-3, dropout=0.0),
        )
        return output


def losses(run: Path) -> list[float]:
    found = read_steps(run / "steps.csv")["loss"].tolist()
    assert len(found) >= STEPS
    return found


def assert_same_losses(found: Path, expected: Path) -> None:
    ours, whole = losses(found), losses(expected)
    assert whole[0] - min(whole) > 0.05, "something is learned"
    for step, (loss, reference) in enumerate(zip(ours, whole, strict=True)):
        assert loss == pytest.approx(reference, rel=1e-5), f"step {step}"


@pytest.fixture(scope="module")
def family_of(
    tiny_data: Path,
    world_of: Callable[[Case], World],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Case], Family]:
    """Return a function that gives a case's `Family`; each is made once."""

    @cache
    def make(case: Case) -> Family:
        world, root = world_of(case), tmp_path_factory.mktemp(case.name)
        found = Family(world.folder, root, tiny_data / "manifest.json")
        states, options = root / "states.h5", {"pairs": 16, "max_caption_tokens": TOKENS}
        extract_states(found.backbone, found.manifest, states, seed=0, **options)
        estimate_gap_file(
            [states],
            root / "gap.h5",
            size=12,
            heldout=4,
            neighbours=3,
            alpha_semantic=1.0,
            alpha_geometric=1.0,
            smoothing="mean",
        )
        last = world.loaded.num_layers
        chosen = {"naive": [last - 2, last - 1], "all": list(range(last))}
        write_json(root / "layers.json", chosen | {"all-vision": chosen["all"]})
        return found

    return make


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def family(request: pytest.FixtureRequest, family_of: Callable[[Case], Family]) -> Family:
    return family_of(request.param)


@pytest.fixture
def blip2(family_of: Callable[[Case], Family]) -> Family:
    return family_of(case_named("blip2"))


def test_every_step_has_the_loss_of_the_whole_model(family: Family, tmp_path: Path) -> None:
    for mode in ("off", "layer", "vision"):
        family.train(tmp_path / mode, "naive", mode)
    assert_same_losses(tmp_path / "layer", tmp_path / "off")
    assert_same_losses(tmp_path / "vision", tmp_path / "off")
    record = read_json(tmp_path / "off" / "run.json")
    assert record["recipe"]["trunk"] == "off"


@pytest.mark.parametrize(
    ("method", "strategy"),
    [("dora", "naive"), ("loftq", "naive"), ("eva", "all")],
)
def test_methods_train_the_same_on_the_cache(
    blip2: Family, tmp_path: Path, method: str, strategy: str
) -> None:
    cached = "layer" if strategy == "naive" else "vision"
    blip2.train(tmp_path / "cached", strategy, cached, method)
    blip2.train(tmp_path / "off", strategy, "off", method)
    assert_same_losses(tmp_path / "cached", tmp_path / "off")


def test_the_vision_tower_is_trained_where_it_is_adapted(family: Family, tmp_path: Path) -> None:
    """A batch's loss has a gradient for the tower's adapters: that of finite differences."""
    backbone = load_backbone(family.backbone)
    trunk = read_trunk(family.trunk("all-vision", "auto")).prepare(backbone)
    assert trunk.mode == "off" and trunk.prefix is None
    layers = list(range(backbone.num_layers))
    model = add_lora(
        backbone, layers, rank=2, alpha=4, dropout=0.0, init_lora_weights=True, vision=True
    )
    randomise(model)
    pattern = re.compile(backbone.vision_pattern)
    towers = [name for name in trainable(model) if pattern.search(name)]
    assert towers, "there are adapters in the tower"
    loss = tail_loss(backbone, trunk.batch([0, 7, 3]))
    loss.backward()
    gradients = {name: value.grad for name, value in trainable(model).items()}
    moving = [name for name in towers if gradients[name] is not None]
    assert moving and all(torch.isfinite(gradients[name]).all() for name in moving)  # type: ignore[arg-type]
    name = max(moving, key=lambda name: float(gradients[name].abs().max()))  # type: ignore[union-attr]
    weight, gradient = trainable(model)[name], gradients[name]
    assert gradient is not None and gradient.abs().max() > 1e-2
    place = int(gradient.abs().argmax())
    with torch.no_grad():
        found = []
        for step in (2e-3, -2e-3):
            weight.view(-1)[place] += step
            found.append(tail_loss(backbone, trunk.batch([0, 7, 3])).item())
            weight.view(-1)[place] -= step
    slope = (found[0] - found[1]) / 4e-3
    assert slope == pytest.approx(float(gradient.view(-1)[place]), rel=0.05, abs=2e-3)


def test_a_run_that_adapts_the_tower(blip2: Family, tmp_path: Path) -> None:
    """It trains, logs the decoder's alignment, and is decoded with the tower that it trained."""
    run = blip2.train(tmp_path / "run", "all-vision", "auto")
    record = read_json(run / "run.json")
    backbone = load_backbone(blip2.backbone)
    assert len(record["alignment_at_init"]) == len(backbone.named_targets(record["layers"]))
    assert record["recipe"]["trunk"] == "off"
    features = tmp_path / "features.h5"
    extract_features(blip2.backbone, blip2.manifest, features)
    options: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 8, "batch_size": 4}
    said = tmp_path / "said.json"
    predict(blip2.backbone, blip2.manifest, features, run / "adapter", said, **options)
    load_adapter(backbone, run / "adapter").eval()
    data = read_manifest(blip2.manifest)
    images = [load_image(path) for path in data.images("test")]
    expected = generate(backbone, backbone.look(images), 8, 1)
    assert [entry["caption"] for entry in read_json(said)] == expected


def test_methods_that_need_a_gap_refuse_the_tower(blip2: Family, tmp_path: Path) -> None:
    for method in ("gap-init", "gap-module", "text-mean", "corda"):
        with pytest.raises(GapinitError) as error:
            blip2.train(tmp_path / method, "all-vision", "auto", method)
        text = str(error.value)
        assert method in text and ("vision_model.encoder.layers.0" in text or method == "corda")
        assert not (tmp_path / method).exists()


@pytest.mark.parametrize("method", ["gradient", "lora-ga", "random-b"])
def test_other_methods_take_the_tower(blip2: Family, tmp_path: Path, method: str) -> None:
    losses(blip2.train(tmp_path / "run", "all-vision", "auto", method))


def test_a_cached_trunk_is_refused_where_the_tower_is_adapted(
    blip2: Family, tmp_path: Path
) -> None:
    for mode in ("layer", "vision"):
        with pytest.raises(GapinitError, match="adapts the tower"):
            blip2.trunk("all-vision", mode)
    (blip2.root / "all-vision_vision.h5").write_bytes(blip2.trunk("all", "vision").read_bytes())
    with pytest.raises(GapinitError, match="this run adapts the tower"):
        blip2.train(tmp_path / "run", "all-vision", "vision")
    (blip2.root / "all-vision_vision.h5").unlink()


def test_the_mode_follows_from_what_is_adapted() -> None:
    assert trunk_mode("auto", 3, vision=False) == trunk_mode("layer", 3, vision=False) == "layer"
    assert trunk_mode("auto", 0, vision=False) == trunk_mode("layer", 0, vision=False) == "vision"
    assert trunk_mode("auto", 0, vision=True) == trunk_mode("off", 4, vision=False) == "off"
    assert trunk_mode("vision", 3, vision=False) == "vision"


def test_a_changed_image_is_named(blip2: Family) -> None:
    trunk = read_trunk(blip2.trunk("naive", "off"))
    with pytest.raises(GapinitError, match="prepare"):
        trunk.batch([0])
    trunk = trunk.prepare(load_backbone(blip2.backbone))
    assert trunk.files is not None
    assert all(not Path(name).is_absolute() for name in trunk.files.names)
    path = trunk.files.root / trunk.files.names[2]
    text = int(np.flatnonzero(trunk.image_row == 2)[0])
    kept = path.read_bytes()
    trunk.batch([text])
    try:
        path.write_bytes((trunk.files.root / trunk.files.names[3]).read_bytes())
        with pytest.raises(GapinitError, match=path.name):
            trunk.batch([text])
        path.unlink()
        with pytest.raises(GapinitError, match=path.name):
            trunk.batch([text])
        trunk.batch([0])
    finally:
        path.write_bytes(kept)


def test_bfloat16_on_disk_is_rounding(family: Family) -> None:
    whole = read_trunk(family.trunk("naive", "layer"))
    half = read_trunk(family.trunk("naive", "layer", dtype="bfloat16"))
    assert half.text is not None and half.text.dtype == BITS
    assert half.prefix is not None and half.prefix.rows.dtype == BITS
    chosen = [0, 5, 31, 117]
    ours, exact = half.batch(chosen), whole.batch(chosen)
    for name in ("states", "memory"):
        if name in exact:
            torch.testing.assert_close(ours[name], exact[name].bfloat16(), rtol=0, atol=0)
    backbone = load_backbone(family.backbone)
    prepared = half.prepare(backbone)
    loss = tail_loss(backbone, prepared.batch(chosen)).item()
    assert loss == pytest.approx(tail_loss(backbone, exact).item(), rel=0.05)
