"""A small results tree as the stages before the report would leave it, with known numbers."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gapinit.artifacts.artifacts import write_json
from gapinit.config.configuration import Config
from gapinit.config.runs import Run
from gapinit.data.captions import CaptionedImage
from gapinit.data.manifest import Manifest, write_manifest
from gapinit.tables.records import ClaimResult, Measurement, RunResult
from gapinit.train.step_log import STEP_COLUMNS

REPOSITORY = Path(__file__).parent.parent
HOSTILE = "<script>alert(1)</script>"
COMPARISON = {
    "vs_reference": -4.5, "vs_reference_low": -9.0, "vs_reference_high": 0.5,
    "p_value": 0.02, "p_holm": 0.0001,
}  # fmt: skip
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'

ROWS: dict[str, dict[str, Any]] = {
    "lora-rank1": {"method": "lora-gaussian", "published": 98.08, "level": 171.0},
    "pissa": {"method": "pissa", "published": 130.42, "level": 169.0},
    "lora-rank8": {"method": "lora-gaussian", "rank": 8, "published": 138.49, "level": 208.0},
    "gap-init": {"method": "gap-init", "published": 140.59, "level": 183.0},
    "random-b": {"method": "random-b", "published": "", "level": 180.0},
    "zero-shot": {"method": "zero-shot", "published": "", "level": 60.0},
}
LABELS = {
    "lora-rank1": "Standard LoRA, rank 1, naive layers",
    "pissa": 'PiSSA <b>"quoted"</b> & more',
    "lora-rank8": "Standard LoRA, rank 8, naive layers",
    "gap-init": "Gap-Init, rank 1, naive layers",
    "random-b": "Control: random B and zero A, rank 1",
    "zero-shot": "Control: zero-shot",
}


@dataclass(frozen=True)
class Tree:
    """Paths of a results tree, by the names that `make_report` gives them."""

    root: Path
    seeds: tuple[int, ...] = (42, 123, 2024)

    @property
    def config(self) -> Config:
        """Return the configuration of the results."""
        return Config.model_validate(
            {
                "name": "scenes",
                "backbone": "mini-blip2",
                "datasets": {"in-domain": "scenes", "ood": "scenes-ood"},
                "seeds": list(self.seeds),
                "calibration": {"size": 256},
                "layers": {"num_layers": 4, "exclude_bottom": 1},
                "experiments": ["table2"],
            }
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """Return every argument of `make_report` but the output."""
        return {
            "config": self.config,
            "tables": [self.root / "6_tables/table2.csv"],
            "claims": self.root / "claims.csv",
            "runs_table": self.root / "6_tables/runs.csv",
            "figures": [self.root / f"7_figures/{name}.svg" for name in ("figure1a", "figure2")],
            "evaluations": self.root / "5_evaluate",
            "runs": self.root / "4_train",
            "manifest": self.root / "1_data/scenes/manifest.json",
            "published": REPOSITORY / "config/published",
            "experiments": [REPOSITORY / "config/experiments/table2.yaml"],
            "rule_graph": REPOSITORY / "docs/rulegraph.svg",
            "layers": self.root / "3_gap/mini-blip2/layers.json",
        }

    def runs_of(self, row: str) -> list[Run]:
        """Return the runs of a row, one a seed."""
        given = ROWS[row]
        head = {"backbone": "mini-blip2", "dataset": "scenes", "method": given["method"]}
        if given["method"] == "zero-shot":
            return [Run(**head)]
        factors: dict[str, Any] = {"rank": given.get("rank", 1), "layers": "naive", "epochs": 1}
        if given["method"] == "gap-init":
            factors |= {"calibration": "in-domain", "calibration_size": 256}
        return [Run(**head, **factors, seed=seed) for seed in self.seeds]


def build(
    root: Path, *, rows: tuple[str, ...] = tuple(ROWS), seeds: tuple[int, ...] = (42, 123, 2024),
    images: int = 40, side: int = 32,
) -> Tree:  # fmt: skip
    """Write tables, claims, runs, scores, images, manifest and figures below `root`."""
    tree = Tree(root, seeds)
    layers = {"naive": [1, 2], "gg-safe": [0, 2], "exclude_bottom": 0, "score": [3.5, 1.25, 2.0]}
    write_json(tree.arguments["layers"], layers)
    _write_images(root / "1_data/scenes", images, side)
    values = _write_scores(tree, rows, images)
    _write_tables(tree, rows, values)
    for figure in tree.arguments["figures"]:
        figure.parent.mkdir(exist_ok=True)
        figure.write_text(SVG, encoding="utf-8")
    return tree


def _write_images(folder: Path, count: int, side: int) -> None:
    draw = random.Random(1)
    captioned = []
    for image_id in range(1, count + 1):
        path = folder / "images" / f"{image_id:012d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = tuple(draw.randrange(256) for _ in range(3))
        image = Image.new("RGB", (side, side * 3 // 4), colour)
        other = tuple(255 - part for part in colour)
        image.paste(other, (side // 4, side // 4, side // 2, side // 2))
        image.save(path, quality=95)
        texts = [f"a small square number {image_id} on a plain ground, said {n}" for n in range(4)]
        captioned.append(CaptionedImage(image_id, path, (*texts, f"<i>R&D</i> {HOSTILE}"), "test"))
    train = [
        CaptionedImage(1000 + n, captioned[n % count].path, ("a square",), "train")
        for n in range(7)
    ]
    splits = {"train": train, "val": train[:2], "test": captioned}
    write_manifest(folder / "manifest.json", Manifest("scenes", folder, {}, splits, "0"))


def _write_scores(tree: Tree, rows: tuple[str, ...], images: int) -> dict[str, float]:
    values = {}
    for row in rows:
        for run in tree.runs_of(row):
            draw = random.Random(run.path)
            level = ROWS[row]["level"] + draw.uniform(-4, 4)
            samples = [
                {"image_id": image, "caption": f"{HOSTILE if image % 2 else ''} {row} of {image}",
                 "CIDEr": max(0.0, level + draw.uniform(-60, 60))}
                for image in range(1, images + 1)
            ]  # fmt: skip
            values[run.path] = sum(sample["CIDEr"] for sample in samples) / images
            write_json(
                tree.root / "5_evaluate" / run.path / "scenes.scores.json",
                {"metrics": {"CIDEr": values[run.path]}, "per_sample": samples},
            )
            if run.trained:
                _write_training(tree.root, run, draw)
    return values


def _write_training(root: Path, run: Run, draw: random.Random) -> None:
    folder, log = root / "4_train" / run.path, root / "logs/4_train" / f"{run.path}.log"
    command = ["--log-file", str(log), "train", "--run", run.path, "--note", "a 'quoted' & <b>"]
    inputs = {"backbone": "b" * 64, "trunk": {"kind": "trunk"}, "gap": "a" * 64}
    write_json(folder / "run.json", _record(run, draw) | {"inputs": inputs})
    write_json(folder / "process.json", {"command": command, "seconds": 12.5})
    steps = [dict.fromkeys(STEP_COLUMNS, 0.5) | {"step": n, "loss": 4.0 / n} for n in range(1, 151)]
    write_csv(folder / "steps.csv", list(STEP_COLUMNS), steps)
    (folder / "adapter").mkdir()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("trained\n", encoding="utf-8")


def _record(run: Run, draw: random.Random) -> dict[str, Any]:
    return {
        "factors": run.factors,
        "layers": [4, 5, 6, 7],
        "trainable_parameters": 13120 * (run.rank or 1),
        "versions": {"torch": "2.13.0", "peft": "0.21.2"},
        "first_grad_norm": draw.uniform(0.1, 0.9),
        "final_loss": draw.uniform(1, 2),
    }


def _write_tables(tree: Tree, rows: tuple[str, ...], values: dict[str, float]) -> None:
    folder = tree.root / "6_tables"
    lines = [line for row in rows for line in _table_lines(tree, row, values)]
    write_csv(folder / "table2.csv", list(Measurement.model_fields), lines)
    claims = []
    for verdict, worse in (("holds", "pissa"), ("does not hold", "lora-rank8")):
        if worse in rows and "gap-init" in rows:
            claims.append(
                {
                    "table": "table2", "text": f"Gap-Init scores above {worse} & co {HOSTILE}",
                    "claim": f"CIDEr(gap-init) > CIDEr({worse})",
                    "question": "Is it the gap?" if worse == "pissa" else "",
                    "better_value": 171.5, "worse_value": 183.8456,
                    "metric": "CIDEr", "statistic": "mean", "better": "gap-init", "worse": worse,
                    "difference": -12.3456, "low": -20.5, "high": -3.25, "verdict": verdict,
                    "n": "3 seeds, 40 images", "margin": 0.0,
                }
            )  # fmt: skip
    write_csv(tree.root / "claims.csv", list(ClaimResult.model_fields), claims)
    records = []
    for run in (run for row in rows for run in tree.runs_of(row)):
        record = _record(run, random.Random(run.path)) if run.trained else {}
        record |= {"run": run.path, "evaluated": "scenes", "metric": "CIDEr", "tables": "table2"}
        records.append(record | {"value": values[run.path]})
    write_csv(folder / "runs.csv", list(RunResult.model_fields), records)


def _table_lines(tree: Tree, row: str, values: dict[str, float]) -> list[dict[str, Any]]:
    runs = [run.path for run in tree.runs_of(row)]
    found, published = np.array([values[path] for path in runs]), ROWS[row]["published"]
    mean, std = found.mean(), found.std(ddof=1) if len(found) > 1 else None
    line = {
        "table": "table2", "row": row, "label": LABELS[row], "n_seeds": len(found),
        "interval_over": "seeds and images", "runs": ";".join(runs),
        "note": "a note with <b> & 'quotes'", **({} if row == "gap-init" else COMPARISON),
    }  # fmt: skip
    cider = line | {
        "metric": "CIDEr", "published": published, "measured": mean, "std": std,
        "interval_low": mean - 6.5, "interval_high": mean + 6.5,
        "difference": mean - published if published else "",
    }  # fmt: skip
    bleu = line | {
        "metric": "Bleu_4", "measured": mean / 4, "std": std and std / 4,
        "interval_low": (mean - 6.5) / 4, "interval_high": (mean + 6.5) / 4,
    }  # fmt: skip
    return [cider, bleu]


def write_csv(path: Path, columns: list[str], lines: list[dict[str, Any]]) -> None:
    """Write lines as CSV; entries that are missing or None stay empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(lines)
