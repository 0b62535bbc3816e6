"""BLIP-2 OPT-2.7B with a fifth of each width, and synthetic photographs for training.

Every width is the published one divided by `SCALE`, rounded to a multiple of its number of heads.
Depths, image tokens, patches and the share of the output matrix are those of the full size, and so
is the distribution of a step's work over tower, Q-Former, frozen and adapted layers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from gapinit.artifacts.artifacts import write_json
from gapinit.backbones.architecture import Architecture, build_architecture, find_architecture
from gapinit.backbones.loading import no_progress_bars
from gapinit.data.captions import CaptionedImage
from gapinit.data.manifest import Manifest, write_manifest

SCALE = 5
ADAPTED = list(range(26, 32))
PHOTO = (640, 480)
CONFIG = Path(__file__).parent.parent / "config"
NAME = "blip2-opt-2.7b"
CHANGES: dict[str, dict[str, Any]] = {
    "vision_config": {
        "hidden_size": 288,  # 1408
        "intermediate_size": 1232,  # 6144
        "num_attention_heads": 4,
    },
    "qformer_config": {
        "hidden_size": 160,  # 768
        "intermediate_size": 640,  # 3072
        "num_attention_heads": 4,
        "encoder_hidden_size": 288,
    },
    "text_config": {
        "vocab_size": 10064,  # 50304: keeps the share of the output matrix
        "hidden_size": 512,  # 2560
        "word_embed_proj_dim": 512,
        "ffn_dim": 2048,  # 10240
        "num_attention_heads": 8,
    },
}
# Trainer sets frozen layers to training mode, too; here both sides run without dropout.
NO_DROPOUT: dict[str, dict[str, Any]] = {
    "qformer_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "text_config": {"dropout": 0.0},
}
# Each word is one or two tokens of the substitute tokenizer.
WORDS = ("a", "photo", "of", "man", "on", "bench", "with", "two", "dogs", "in", "the", "park")


# For measurements that do not depend on widths: memory against the number of images.
SMALL: dict[str, dict[str, Any]] = {
    "vision_config": {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "qformer_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "encoder_hidden_size": 32,
    },
    "text_config": {
        "vocab_size": 512,
        "hidden_size": 128,
        "word_embed_proj_dim": 128,
        "ffn_dim": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
}


def architecture(full: bool = False) -> Architecture:
    """Return the published architecture, or the same scaled down."""
    published = find_architecture(NAME, CONFIG)
    config = dict(published.config)
    for part, smaller in CHANGES.items():
        changes = {} if full else smaller
        config[part] = {**config[part], **changes, **NO_DROPOUT.get(part, {})}
    return published.model_copy(update={"config": config})


def write_world(folder: Path, images: int, full: bool = False) -> None:
    """Write `backbone/`, `data/` (JPEG files and `manifest.json`) and `layers.json`.

    The weights are random, with the scale of a trained model; images and captions have the sizes
    of COCO.
    """
    write_backbone(folder / "backbone", architecture(full))
    data = folder / "data"
    (data / "images").mkdir(parents=True)
    draw = random.Random(0)
    entries = []
    for number in range(images):
        path = data / "images" / f"{number:06d}.jpg"
        photograph(number).save(path, quality=92)
        # COCO's captions have 10.5 words on average, from 8 up.
        words = draw.choices(WORDS, k=min(8 + int(draw.expovariate(1 / 2.5)), 24))
        entries.append(CaptionedImage(number, path, (" ".join(words),), "train"))
    write_manifest(data / "manifest.json", Manifest("coco-like", data, {}, {"train": entries}))
    write_json(folder / "layers.json", {"naive": ADAPTED})


def write_small_world(folder: Path, sizes: Sequence[int]) -> None:
    """Write a small backbone, and a `data/manifest-N.json` of the first N of small images."""
    published = find_architecture(NAME, CONFIG)
    config = published.config
    small = {part: {**config[part], **changes} for part, changes in SMALL.items()}
    reader = published.image_processor.model_copy(
        update={"arguments": {"size": {"height": 32, "width": 32}}}
    )
    write_backbone(
        folder / "backbone",
        published.model_copy(update={"config": {**config, **small}, "image_processor": reader}),
    )
    data = folder / "data"
    (data / "images").mkdir(parents=True)
    draw = np.random.default_rng(0)
    entries = []
    for number in range(max(sizes)):
        path = data / "images" / f"{number:06d}.jpg"
        Image.fromarray(draw.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path)
        entries.append(CaptionedImage(number, path, (" ".join(WORDS[: 4 + number % 8]),), "train"))
    for size in sizes:
        chosen = Manifest("small", data, {}, {"train": entries[:size]})
        write_manifest(data / f"manifest-{size}.json", chosen)
    write_json(folder / "layers.json", {"naive": [3]})


def write_backbone(folder: Path, shape: Architecture) -> None:
    """Write a `save_pretrained` folder with random weights and the real processor class."""
    import torch

    torch.manual_seed(0)
    backbone = build_architecture(shape, NAME, "cpu", "float32")
    with torch.no_grad():
        backbone.model.query_tokens.normal_()
    with no_progress_bars():
        backbone.model.save_pretrained(folder)
        _processor(backbone).save_pretrained(folder)


def _processor(backbone: Any) -> Any:
    from transformers import Blip2Processor

    return Blip2Processor(
        backbone.processor.image_processor,
        backbone.processor.tokenizer,
        num_query_tokens=backbone.model.config.num_query_tokens,
    )


def photograph(seed: int) -> Image.Image:
    """Return an image with shapes, shades and noise that compresses about as a photograph."""
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 255, (12, 16, 3), dtype=np.uint8)
    smooth = Image.fromarray(small).resize(PHOTO, Image.Resampling.BICUBIC)
    grain = draw.normal(0, 60, (PHOTO[1], PHOTO[0], 3))
    noisy = np.clip(np.asarray(smooth, dtype=np.float64) + grain, 0, 255).astype(np.uint8)
    return Image.fromarray(noisy).filter(ImageFilter.GaussianBlur(1))
