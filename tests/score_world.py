"""A small world of score files and run records with known means, for tests of tables."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gapinit.config.configuration import Config
from gapinit.config.experiments import load_experiment, table_rows
from gapinit.config.runs import Run
from gapinit.tables.claims import check_claims
from gapinit.tables.table import make_table
from gapinit.train.step_log import STEP_COLUMNS

from .plain_json import write_json

SEEDS = [42, 123, 2024]
NUM_IMAGES = 60
OFFSETS = dict(zip(SEEDS, [-1.0, 0.0, 1.0], strict=True))


class World:
    """A folder of synthetic score files and run records for one experiment."""

    def __init__(self, folder: Path, config: Config, content: dict[str, Any]) -> None:
        self.config = config
        self.experiment = folder / "config" / "mine.yaml"
        self.evaluations, self.runs = folder / "5_evaluate", folder / "4_train"
        self.published = folder / "published"
        self.output = folder / "6_tables" / "mine.csv"
        self.experiment.parent.mkdir(parents=True)
        self.experiment.write_text(yaml.safe_dump(content))
        self.published.mkdir()
        (self.published / "gap-init.csv").write_text(
            "place,row,metric,value,std,printed,printed_row,configuration\n"
            "Table 2,lora,CIDEr,98.08,,98.08,,c/lora\n"
            "Table 2,gap,CIDEr,140.59,1.5,140.59 ± 1.5,,c/gap\n"
            "Table 7,lora,CIDEr,135.37,7.1,135.37 ± 7.10,,c/lora\n"
        )
        self.rows = {
            row.id: row.runs for row in table_rows(load_experiment(self.experiment), config, "test")
        }

    def score(self, row: str, run: Run, mean: float, dataset: str = "scenes") -> Path:
        """Write scores whose CIDEr is exactly `mean`, with the same image effects in every run."""
        rng = np.random.default_rng([run.seed or 0, *row.encode()])
        images = np.random.default_rng(0).normal(0, 10, NUM_IMAGES)
        cider = images + rng.normal(0, 4, NUM_IMAGES)
        cider += mean - cider.mean()
        samples = [
            {"image_id": i, "caption": "a \\ caption", "CIDEr": value, "Bleu_4": 1.0}
            for i, value in enumerate(cider)
        ]
        # The order of a file means nothing: pairs are found by image.
        order = rng.permutation(NUM_IMAGES)
        path = self.evaluations / run.path / f"{dataset}.scores.json"
        metrics = {"CIDEr": float(cider.mean()), "Bleu_4": mean / 4}
        write_json(path, {"metrics": metrics, "per_sample": [samples[i] for i in order]})
        return path

    def train(self, run: Run) -> None:
        """Write the record of a trained run."""
        if not run.trained:
            return
        record = {"factors": run.factors, "first_grad_norm": 0.5, "final_loss": 1.25}
        record |= {"noise_cosine": None, "trainable_parameters": 1234}
        folder = self.runs / run.path
        write_json(folder / "run.json", record)
        write_json(folder / "process.json", {"seconds": 12.5, "peak_memory_mb": 800.5})
        log = f"{','.join(STEP_COLUMNS)}\n1,4.0,0.5,0.1,0\n2,1.25,0.5,0.1,0\n"
        (folder / "steps.csv").write_text(log)

    def fill(self, means: dict[str, float], dataset: str = "scenes") -> None:
        """Write everything: a row's seeds score its mean plus their offsets."""
        for row, runs in self.rows.items():
            for run in runs:
                offset = 0.0 if run.seed is None else OFFSETS[run.seed]
                self.score(row, run, means[row] + offset, dataset)
                self.train(run)

    def table(self) -> dict[tuple[str, str], dict[str, str]]:
        """Make the table; return its lines by row and metric."""
        folders = self.evaluations, self.runs, self.published
        make_table(self.experiment, self.config, *folders, self.output)
        return {(line["row"], line["metric"]): line for line in read(self.output)}

    def claims(self) -> list[dict[str, str]]:
        """Check the claims; return the lines."""
        output = self.output.with_name("claims.csv")
        check_claims([self.experiment], self.config, self.evaluations, self.runs, output)
        return read(output)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def claim(
    better: str, worse: str, metric: str = "CIDEr", margin: int = 0, statistic: str = "mean"
) -> dict[str, Any]:
    """Return a claim that one row is above another, or of standard deviations below it."""
    sides = [f"{metric}({row})" for row in (better, worse)]
    if statistic == "std":
        return {"text": "steadier", "claim": "sd({}) < sd({})".format(*sides)}
    return {"text": "better", "claim": " >= ".join(sides) + (f" - {margin}" if margin else "")}


CONTENT: dict[str, Any] = {
    "title": "Scores & costs at 100% of a_table",
    "paper": "gap-init",
    "place": "Table 2",
    "metrics": ["CIDEr", "Bleu_4"],
    "reference": "gap",
    "rows": [
        {"id": "lora", "label": "[LoRA] {rank}", "method": "lora-gaussian", "published": "lora"},
        {"id": "gap", "label": "Gap_Init #1 | ~best", "method": "gap-init", "published": "gap"},
        {"id": "random-b", "label": "Random B", "method": "random-b"},
        {"id": "zero-shot", "label": "Zero-shot", "method": "zero-shot"},
    ],
    "note": "A note of 5 % & more.",
}
MEANS = {"lora": 120.0, "gap": 130.0, "random-b": 129.9, "zero-shot": 40.0}


def make_world(
    folder: Path,
    seeds: list[int] = SEEDS,
    backbones: Mapping[str, str] | None = None,
    **changes: Any,
) -> World:
    """Return an empty world; keyword arguments change the experiment."""
    config = Config.model_validate(
        {
            "name": "test",
            "backbone": "mini-blip2",
            "backbones": backbones or {},
            "datasets": {"in-domain": "scenes", "ood": "scenes-ood"},
            "seeds": seeds,
            "calibration": {},
            "layers": {"num_layers": 2},
            "experiments": ["mine"],
        }
    )
    return World(folder / "a world", config, CONTENT | changes)
