"""A BLIP-2 with random weights and a few generated images, for tests of the model stages.

The model is small and untrained, but of the real classes. Its weights are drawn wider than at the
start of a training, norms and biases included, so that a state taken at the wrong place, a
position counted twice or a norm left out changes numbers visibly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import yaml
from peft import PeftModel
from torch import Tensor
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from gapinit.artifacts.artifacts import write_json
from gapinit.backbones.mini_blip2 import MiniBlip2Settings, Phase
from gapinit.config.methods import METHODS
from gapinit.config.recipe import Recipe
from gapinit.config.runs import Run
from gapinit.config.yaml_files import check_settings
from gapinit.data.captions import CaptionedImage
from gapinit.data.dataset import prepare_dataset
from gapinit.data.images import load_image
from gapinit.data.manifest import read_manifest
from gapinit.gap.gap_file import estimate_gap_file
from gapinit.states.states import extract_states
from gapinit.train.train import train_runs
from gapinit.train.trunk.write import extract_trunk

COMMON_TOKEN = 41
TOKENS = 32  # captions are cut to this length, BOS included
LAYERS = {"naive": [1, 2], "gg-safe": [1], "all": [0, 1, 2]}
DATASET = {
    "name": "tiny",
    "generator": "scenes",
    "layout": "coco",
    "domain": "studio",
    "seed": 5,
    "images": {"train": 24, "val": 2, "test": 7},
}
BACKBONE: dict[str, Any] = {
    "name": "tiny",
    "family": "mini-blip2",
    "pretraining": "tiny-pretraining",
    "seed": 0,
    "image_size": 16,
    "patch_size": 8,
    "vision_layers": 1,
    "vision_width": 16,
    "qformer_layers": 1,
    "qformer_width": 16,
    "query_tokens": 4,
    "decoder_layers": 3,
    "decoder_width": 32,
    "attention_heads": 4,
    "vocabulary": 340,
    "max_positions": 60,
}
PHASE = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 1}
BACKBONE |= {
    field.alias or name: PHASE
    for name, field in MiniBlip2Settings.model_fields.items()
    if field.annotation is Phase
}


@dataclass(frozen=True)
class SmallWorld:
    """Where the artifacts of the tiny world lie."""

    root: Path

    @property
    def backbone(self) -> Path:
        return self.root / "backbone"

    @property
    def manifest(self) -> Path:
        return self.root / "data" / "manifest.json"

    @property
    def states(self) -> Path:
        return self.root / "states.h5"

    @property
    def gap(self) -> Path:
        return self.root / "gap.h5"

    @property
    def layers(self) -> Path:
        return self.root / "layers.json"

    def trunk(self, strategy: str) -> Path:
        return self.root / f"trunk_{strategy}.h5"

    def images(self, split: str) -> list[CaptionedImage]:
        return read_manifest(self.manifest).captions(split)

    def stock_model(self) -> Blip2ForConditionalGeneration:
        """Return the model as any user of transformers would load it."""
        model = Blip2ForConditionalGeneration.from_pretrained(self.backbone)
        return model.eval().requires_grad_(False)

    def stock_processor(self) -> Blip2Processor:
        return Blip2Processor.from_pretrained(self.backbone)

    def train(
        self, output: Path, method: str = "gap-init", *, strategy: str = "naive", **changes: Any
    ) -> Path:
        """Train one run of a few steps; `changes` go to the run, the recipe or the LoRA."""
        self.train_all({output: self.run(method, strategy, changes)}, strategy, **changes)
        return output

    def run(self, method: str, strategy: str, changes: dict[str, Any]) -> Run:
        """Return a run of the tiny world; takes out of `changes` what is its own."""
        factors: dict[str, Any] = {"rank": 1, "epochs": 1, "seed": 42}
        factors["rank"] += METHODS[method].even_rank
        if METHODS[method].uses_gap:
            factors |= {"calibration": "in-domain", "calibration_size": 12}
        factors |= {name: changes.pop(name) for name in list(changes) if name in _RUN}
        return Run("tiny", "tiny", method, layers=strategy, **factors)

    def train_all(
        self,
        goals: dict[Path, Run],
        strategy: str = "naive",
        **changes: Any,
    ) -> None:
        """Train runs in one process, each into its folder; `changes` as of `train`."""
        train_runs(
            list(goals.values()),
            self.backbone,
            self.trunk(strategy),
            self.layers,
            self.gap,
            list(goals),
            recipe=Recipe(**{"batch_size": 24} | changes),
        )


_RUN = set(Run.__dataclass_fields__)


@lru_cache(maxsize=1)
def small_world(base: Path) -> SmallWorld:
    """Make the tiny world below `base`, once for all test modules of a session."""
    torch.set_num_threads(1)
    world = SmallWorld(Path(mkdtemp(prefix="small-world-", dir=base)))
    settings = world.root / "tiny.yaml"
    settings.write_text(yaml.safe_dump(DATASET), encoding="utf-8")
    prepare_dataset(settings, world.root / "data")
    captions = [text for image in world.images("train") for text in image.captions]
    make_backbone(world.backbone, captions)
    write_json(world.layers, LAYERS)
    extract_states(world.backbone, world.manifest, world.states, pairs=20, seed=0)
    estimate_gap_file(
        [world.states],
        world.gap,
        size=12,
        heldout=8,
        neighbours=3,
        alpha_semantic=1.0,
        alpha_geometric=1.0,
        smoothing="spot",
    )
    for strategy in LAYERS:
        extract_trunk(
            world.backbone,
            world.manifest,
            world.layers,
            strategy,
            world.trunk(strategy),
            max_tokens=TOKENS,
        )
    return world


def make_backbone(folder: Path, corpus: list[str], seed: int = 3, **changes: Any) -> None:
    """Write a random backbone as a `save_pretrained` folder."""
    settings = check_settings({**BACKBONE, **changes}, MiniBlip2Settings, "tiny")
    backbone = settings.build(corpus)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in backbone.model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                weight.copy_(1.0 + 0.3 * noise)
            elif weight.ndim < 2:
                weight.copy_(0.3 * noise)
            elif "embed" in name or "query_tokens" in name:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(2.0 * noise / weight[0].numel() ** 0.5)
        # The end of a sentence looks like a token that is generated now and then: sentences then
        # differ in length.
        embedding = backbone.model.get_input_embeddings().weight
        embedding[backbone.eos_token_id] = 1.02 * embedding[COMMON_TOKEN]
    backbone.model.eval().save_pretrained(folder)
    backbone.processor.save_pretrained(folder)


def reference_inputs(
    processor: Blip2Processor, image: CaptionedImage, caption: str
) -> dict[str, Tensor]:
    """Return what the real processor makes of one pair, without padding."""
    return dict(processor(images=load_image(image.path), text=caption, return_tensors="pt"))


def reference_batch(world: SmallWorld, chosen: list[int]) -> dict[str, Tensor]:
    """Return a batch as one feeds the whole model: pixels, padded ids with EOS, masked labels."""
    processor = world.stock_processor()
    tokenizer = processor.tokenizer
    pairs = [(image, text) for image in world.images("train") for text in image.captions]
    sequences, pixels = [], []
    for index in chosen:
        inputs = reference_inputs(processor, *pairs[index])
        ids = inputs["input_ids"][0][: 4 + TOKENS].tolist()
        sequences.append([*ids, tokenizer.eos_token_id])
        pixels.append(inputs["pixel_values"][0])
    padded = tokenizer.pad({"input_ids": sequences}, return_tensors="pt", padding_side="right")
    labels = padded["input_ids"].clone()
    labels[:, :5] = -100  # image tokens and BOS are given, not predicted
    labels[padded["attention_mask"] == 0] = -100
    return {
        "pixel_values": torch.stack(pixels),
        "input_ids": padded["input_ids"],
        "attention_mask": padded["attention_mask"],
        "labels": labels,
    }


def trainable(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


@torch.no_grad()
def randomise(model: PeftModel) -> None:
    """Give A and B weights of a trained size, so that both have gradients."""
    generator = torch.Generator().manual_seed(8)
    for value in trainable(model).values():
        value.copy_(0.2 * torch.randn(value.shape, generator=generator))
