"""Small good files of every kind, and the stages that make them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import write_json
from gapinit.artifacts.digests import record_folder
from gapinit.config.configuration import Config
from gapinit.evaluate.metrics.vqa import score_vqa
from gapinit.evaluate.predict import extract_features, predict
from gapinit.gap.gap_file import estimate_gap_file
from gapinit.train.trunk.write import extract_trunk

from ..dataset_folders import GOOD
from ..report_tree import Tree, build
from ..score_world import MEANS, make_world
from ..small_backbone import SmallWorld

CONFIG = Path(__file__).resolve().parents[2] / "config"


def make_goods(root: Path, world: SmallWorld) -> dict[str, Path]:
    """Make the good folders below `root`, by name."""
    goods = {name: root / name for name in ("world", "report", "scores", "tables", "config", *GOOD)}
    shutil.copytree(world.root, goods["world"])
    small = SmallWorld(goods["world"])
    small.train(goods["world"] / "run")
    extract_features(small.backbone, small.manifest, goods["world"] / "features.h5")
    record_folder(small.backbone)
    build(goods["report"], images=6, seeds=(42, 123))
    _scores(goods["scores"])
    tables = make_world(goods["tables"])
    tables.fill(MEANS)
    content = tables.config.model_dump(mode="json", by_alias=True)
    write_json(goods["tables"] / "configuration.json", content)
    shutil.copytree(CONFIG, goods["config"])
    for name, make in GOOD.items():
        make(goods[name])
    return goods


def _scores(folder: Path) -> None:
    ids = [1, 2, 3]
    write_json(
        folder / "captions.json",
        {
            "images": [{"id": one} for one in ids],
            "annotations": [
                {"id": 10 * one + n, "image_id": one, "caption": f"a dog number {one} runs {n}"}
                for one in ids
                for n in range(2)
            ],
        },
    )
    write_json(folder / "said.json", [{"image_id": one, "caption": f"a dog {one}"} for one in ids])
    write_json(
        folder / "questions.json",
        {"questions": [{"question_id": n, "image_id": n, "question": "what?"} for n in ids]},
    )
    write_json(
        folder / "annotations.json",
        {
            "annotations": [
                {
                    "question_id": n,
                    "image_id": n,
                    "question_type": "what",
                    "answer_type": "other",
                    "answers": [{"answer_id": k, "answer": "red"} for k in range(1, 11)],
                }
                for n in ids
            ]
        },
    )
    write_json(folder / "answered.json", [{"question_id": n, "answer": "red"} for n in ids])
    pope = [{"question_id": n, "image": "1.jpg", "text": "is it?", "label": "yes"} for n in ids]
    (folder / "pope_random.json").write_text("".join(json.dumps(one) + "\n" for one in pope))
    said = [{"question_id": n, "answer": "yes"} for n in ids]
    (folder / "pope_said.json").write_text("".join(json.dumps(one) + "\n" for one in said))


def make_gap(states: Path, output: Path) -> None:
    """Run the gap stage."""
    estimate_gap_file(
        [states], output, size=12, heldout=8, neighbours=3,
        alpha_semantic=1.0, alpha_geometric=1.0, smoothing="spot",
    )  # fmt: skip


def make_trunk(small: SmallWorld, output: Path) -> None:
    """Run the trunk stage."""
    extract_trunk(small.backbone, small.manifest, small.layers, "naive", output, max_tokens=32)


def make_predictions(root: Path, output: Path, adapter: bool = False) -> None:
    """Run the predict stage."""
    small = SmallWorld(root)
    predict(
        small.backbone, small.manifest, root / "features.h5",
        root / "run/adapter" if adapter else None, output,
        num_beams=1, max_new_tokens=3, batch_size=8,
    )  # fmt: skip


def make_scores(root: Path, output: Path) -> None:
    """Run a scorer that needs no Java."""
    names = ("questions.json", "annotations.json", "answered.json")
    score_vqa(*(root / name for name in names), output)


def build_paths(root: Path) -> dict[str, Any]:
    """Return the paths of a report that lies in a folder."""
    config = Config.model_validate(
        {
            "name": "scenes", "backbone": "mini-blip2",
            "datasets": {"in-domain": "scenes", "ood": "scenes-ood"}, "seeds": [42, 123],
            "calibration": {"size": 256}, "layers": {"num_layers": 4, "exclude_bottom": 1},
            "experiments": ["table2"],
        }
    )  # fmt: skip
    return Tree(root, config, (42, 123)).arguments
