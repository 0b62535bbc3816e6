"""Several runs in one pass against the same runs one after another, by hidden width.

Both ways train the same seeds of Gap-Init in this process, in turn; a ratio of CPU seconds above
1 says that one pass was faster. What one process saves either way (imports, model and trunk paid
once) is in neither. The backbones are BLIP-2 as `mini-blip2` is, of random weights, with a decoder
of the width.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml

from benchmarks.measure import Result, Spread, alternate, ratios
from gapinit.backbones.mini_blip2 import MiniBlip2Settings, build, train_tokenizer
from gapinit.config.configuration import Lora, Training
from gapinit.config.runs import Run
from gapinit.config.yaml_files import check_settings, read_yaml
from gapinit.data.dataset import prepare_dataset
from gapinit.data.manifest import read_manifest
from gapinit.gap.gap_file import estimate_gap_file
from gapinit.gap.layers import write_layers
from gapinit.states.states import extract_states
from gapinit.train.train import train_runs
from gapinit.train.trunk.write import extract_trunk

ROOT = Path(__file__).parent.parent
SEEDS = (42, 123, 2024, 999, 7)
BATCH_SIZE = 32
CAPTIONS_AN_IMAGE = 5


@dataclass(frozen=True)
class Shape:
    """A decoder's width, and how many steps of it are timed."""

    width: int
    heads: int
    steps: int


SHAPES = (
    Shape(32, 4, 60),
    Shape(64, 4, 50),
    Shape(128, 4, 30),
    Shape(256, 4, 15),
    Shape(1024, 16, 3),
)


@dataclass(frozen=True)
class World:
    """Artifacts of one shape: everything that a training reads."""

    folder: Path

    def train(self, runs: int, together: str) -> float:
        """Train the first seeds in one call; return the CPU seconds it took."""
        chosen = [
            Run("small", "small", "gap-init", 1, "naive", 1, "in-domain", 16, seed=seed)
            for seed in SEEDS[:runs]
        ]
        with tempfile.TemporaryDirectory() as scratch:
            outputs = [Path(scratch) / f"seed{run.seed}" for run in chosen]
            began = time.process_time()
            train_runs(
                chosen,
                self.folder / "backbone",
                self.folder / "trunk.h5",
                self.folder / "layers.json",
                self.folder / "gap.h5",
                outputs,
                recipe=Training(batch_size=BATCH_SIZE, max_caption_tokens=40),
                lora=Lora(dropout=0.0),
                together=together,
            )
            return time.process_time() - began


def make_world(shape: Shape, folder: Path) -> World:
    """Write a backbone of random weights and the artifacts of the stages before training."""
    data = folder / "data"
    generated = {
        "name": "small",
        "generator": "scenes",
        "layout": "coco",
        "domain": "studio",
        "seed": 5,
        "images": {"train": shape.steps * BATCH_SIZE // CAPTIONS_AN_IMAGE, "val": 2, "test": 2},
    }
    settings = folder / "small.yaml"
    settings.write_text(yaml.safe_dump(generated), encoding="utf-8")
    prepare_dataset(settings, data, progress=False)
    captions = [
        text
        for it in read_manifest(data / "manifest.json").captions("train")
        for text in it.captions
    ]
    sizes = read_yaml(ROOT / "config/backbones/mini-blip2.yaml")
    sizes |= {"decoder_width": shape.width, "attention_heads": shape.heads}
    checked = check_settings(sizes, MiniBlip2Settings, "mini-blip2")
    torch.manual_seed(0)
    backbone = build(checked, train_tokenizer(captions, checked.vocabulary))
    backbone.model.eval().save_pretrained(folder / "backbone")
    backbone.processor.save_pretrained(folder / "backbone")
    made, manifest = folder / "backbone", data / "manifest.json"
    extract_states(made, manifest, folder / "states.h5", pairs=32, seed=0, max_caption_tokens=40)
    estimate_gap_file(
        [folder / "states.h5"],
        folder / "gap.h5",
        size=16,
        heldout=16,
        neighbours=5,
        alpha_semantic=1.0,
        alpha_geometric=1.0,
        smoothing="spot",
    )
    write_layers(folder / "gap.h5", folder / "layers.json", num_layers=4, exclude_bottom=1)
    layers = folder / "layers.json"
    extract_trunk(made, manifest, layers, "naive", folder / "trunk.h5", max_tokens=40)
    return World(folder)


def compare(world: World, runs: int, repeats: int) -> Spread:
    """Time both ways in turn; return one pass against one run after another, turn by turn."""
    one_pass, in_turn = alternate(
        lambda: world.train(runs, "always"), lambda: world.train(runs, "never"), repeats, warmups=0
    )
    return ratios(one_pass, in_turn)


def main() -> None:
    """Measure, tell and write `results/stacked_runs.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--runs", type=int, nargs="+", default=[3])
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--threads", type=int, default=1, help="As the workflow's jobs have.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured: dict[str, Spread | float | int | str] = {}
    for shape in SHAPES:
        if shape.width not in options.widths:
            continue
        with tempfile.TemporaryDirectory() as folder:
            world = make_world(shape, Path(folder))
            world.train(1, "never")  # warms up
            for runs in options.runs:
                name = f"{runs} runs in one pass, width {shape.width}, times as fast"
                found = measured[name] = compare(world, runs, options.repeats)
                print(f"  {name}: {found.median:.2f}", flush=True)
    settings = {"threads": options.threads, "shapes": [asdict(shape) for shape in SHAPES]}
    Result("stacked_runs", [], measured, settings).write()


if __name__ == "__main__":
    main()
