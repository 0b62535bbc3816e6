"""Every stage that writes, as a call from good folders into another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import read_json
from gapinit.config.configuration import Config
from gapinit.data.dataset import prepare_dataset
from gapinit.evaluate.predict import extract_features
from gapinit.gap.layers import write_layers
from gapinit.report.page import make_report
from gapinit.states.states import extract_states
from gapinit.tables.claims import check_claims
from gapinit.tables.table import make_table, tidy_runs

from ..small_backbone import SmallWorld
from . import goods as made


@dataclass(frozen=True)
class Stage:
    """A stage that writes: its output below a folder, and the call that makes it there."""

    name: str
    output: str
    call: Callable[[Path], Any]


def stages(goods: dict[str, Path]) -> list[Stage]:
    """Return every stage that writes, reading from good folders and writing into another one."""
    world, scores, report = (SmallWorld(goods["world"]), goods["scores"], goods["report"])
    settings = world.root / "tiny.yaml"

    def backbone(folder: Path) -> None:
        from gapinit.artifacts.artifacts import atomic_folder
        from gapinit.backbones import load_backbone

        model = load_backbone(world.backbone)
        with atomic_folder(folder / "backbone") as target:
            model.model.save_pretrained(target)
            model.processor.save_pretrained(target)

    def tables(folder: Path) -> None:
        root = goods["tables"] / "a world"
        config = Config.model_validate(read_json(goods["tables"] / "configuration.json"))
        experiment, scored, runs = root / "config/mine.yaml", root / "5_evaluate", root / "4_train"
        output = folder / "tables"
        make_table(experiment, config, scored, runs, root / "published", output / "mine.csv")
        check_claims([experiment], config, scored, runs, output / "claims.csv")
        tidy_runs([experiment], config, scored, runs, output / "runs.csv")

    def figures(folder: Path) -> None:
        from gapinit.figures import figure1a

        figure1a.draw(report / "6_tables/table2.csv", folder / "figures/figure1a")

    return [
        Stage("data", "data", lambda f: prepare_dataset(settings, f / "data", progress=False)),
        Stage("backbone", "backbone", backbone),
        Stage(
            "states",
            "states.h5",
            lambda f: extract_states(
                world.backbone, world.manifest, f / "states.h5", pairs=20, seed=0
            ),
        ),
        Stage("gap", "gap.h5", lambda f: made.make_gap(world.states, f / "gap.h5")),
        Stage("layers", "layers.json", lambda f: write_layers(world.gap, f / "layers.json", 1, 1)),
        Stage("trunk", "trunk.h5", lambda f: made.make_trunk(world, f / "trunk.h5")),
        Stage("train", "run", lambda f: world.train(f / "run")),
        Stage(
            "features",
            "features.h5",
            lambda f: extract_features(world.backbone, world.manifest, f / "features.h5"),
        ),
        Stage("predict", "said.json", lambda f: made.make_predictions(world.root, f / "said.json")),
        Stage("score", "scores.json", lambda f: made.make_scores(scores, f / "scores.json")),
        Stage("tables", "tables", tables),
        Stage("figures", "figures", figures),
        Stage(
            "report",
            "report.html",
            lambda f: make_report(**made.build_paths(report), output=f / "report.html"),
        ),
    ]
