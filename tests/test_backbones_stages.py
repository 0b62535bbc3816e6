"""Each family through every stage, from states to predictions, on its small random model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from gapinit.artifacts.artifacts import read_json
from gapinit.data.images import load_image
from gapinit.evaluate.predict import extract_features, predict
from gapinit.gap.gap_file import estimate_gap_file
from gapinit.gap.layers import write_layers
from gapinit.states.states import extract_states
from gapinit.train.trunk.write import extract_trunk

from .backbone_cases import CASES, Case, World
from .small_backbone import SmallWorld

NEW_TOKENS = 8
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def answer(case: Case, backbone: Any, model: Any, path: Path) -> str:
    """Return what plain transformers says about one image, from its pixels."""
    image = load_image(path)
    [prompt] = backbone.encode_prompts([backbone.prompts.caption], NEW_TOKENS)
    placeholders = [backbone.image_token_id] * case.image_tokens(backbone, image)
    ids = torch.tensor([[*backbone.head, *placeholders, *prompt]])
    tokens = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=backbone.stop_token_ids,
        pad_token_id=backbone.pad_token_id,
        **case.arguments(model, backbone, [image], ids),
    )[0, ids.shape[1] :]
    text: str = backbone.processor.tokenizer.decode(tokens, skip_special_tokens=True)
    return text.strip()


def trained(small: SmallWorld, exclude_bottom: int = 0) -> Path:
    """Run every stage on a backbone and a dataset, from states to features; return the run."""
    extract_states(small.backbone, small.manifest, small.states, pairs=20, seed=0)
    estimate_gap_file(
        [small.states],
        small.gap,
        size=12,
        heldout=8,
        neighbours=3,
        alpha_semantic=1.0,
        alpha_geometric=1.0,
        smoothing="spot",
    )
    write_layers(small.gap, small.layers, num_layers=2, exclude_bottom=exclude_bottom)
    extract_trunk(small.backbone, small.manifest, small.layers, "naive", small.trunk("naive"))
    extract_features(small.backbone, small.manifest, small.root / "features.h5")
    return small.train(small.root / "run", learning_rate=2e-2, batch_size=8)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_stage_runs_and_predicts_what_stock_peft_does(
    case: Case, tiny_data: Path, world_of: Callable[[Case], World], tmp_path: Path
) -> None:
    world, small = world_of(case), SmallWorld(tmp_path)
    small.backbone.symlink_to(world.folder)
    (tmp_path / "data").symlink_to(tiny_data)
    run, features = trained(small), tmp_path / "features.h5"
    backbone = world.loaded
    paths = [image.path for image in small.images("test")]
    told = []
    for number, adapter in enumerate((None, run / "adapter")):
        output = tmp_path / f"predictions_{number}.json"
        options = {"num_beams": 1, "max_new_tokens": NEW_TOKENS, "batch_size": 3}
        predict(small.backbone, small.manifest, features, adapter, output, **options)
        plain = world.stock()
        model = PeftModel.from_pretrained(plain, str(adapter)) if adapter else plain
        found = [entry["caption"] for entry in read_json(output)]
        assert found == [answer(case, backbone, model.eval(), path) for path in paths]
        told.append(found)
    assert told[0] != told[1], "the adapter changes what is said"
