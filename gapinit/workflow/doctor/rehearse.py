"""`gapinit rehearse`: every stage of a run on the real shapes with random weights, timed.

Nothing is downloaded. The model is built once, in memory; the stages follow each other on it as
they do in the workflow. The losses mean nothing; a rehearsal shows that every shape, dtype and
device goes through, how long it takes and how much memory it needs.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from gapinit.adapters.methods.setup import Setup, adapt
from gapinit.artifacts.artifacts import package_versions, write_json
from gapinit.backbones.architecture import Architecture, build_architecture
from gapinit.backbones.facts import PHOTO, Facts
from gapinit.backbones.generation import generate_tokens
from gapinit.data.captions import CaptionedImage
from gapinit.data.images import load_image
from gapinit.data.manifest import Manifest
from gapinit.errors import GapinitError
from gapinit.gap.estimate import measure_layers
from gapinit.gap.gap_vectors import GapVectors
from gapinit.gap.spot import DEFAULT_NEIGHBOURS
from gapinit.states.states import pooled_states
from gapinit.train.tail_module import Tail
from gapinit.train.trunk.write import Trunk, encoded_texts, read_trunk, write_trunk
from gapinit.workflow.doctor.costs import Batch, predict_bytes, states_bytes, train_bytes
from gapinit.workflow.doctor.rehearse_meter import Meter, device_label, require_memory

if TYPE_CHECKING:
    from torch import Tensor

    from gapinit.backbones.base import Backbone

CAPTION_TOKENS = 32
NEW_TOKENS = 32
GENERATED = 4
WORDS = "a man dog bench park two red with on the in and photo of sitting near street cat"


@dataclass(frozen=True)
class Options:
    """How much is rehearsed, and where."""

    device: str = "cpu"
    pairs: int = 64
    steps: int = 20
    layers: int = 6
    rank: int = 1
    batch_size: int = 8
    seed: int = 0


def rehearse(
    architecture: Architecture, facts: Facts, name: str, options: Options, output: Path | None
) -> dict[str, Any]:
    """Run all stages and return their seconds, memory and throughput; write them as JSON, too.

    Raises GapinitError before anything is built if there is too little memory.
    """
    needed = needed_bytes(facts, options)
    require_memory(needed, options.device, name)
    meter = Meter(options.device)
    torch.manual_seed(options.seed)
    with meter.stage("build", facts.parameters, "weights"):
        model = build_architecture(architecture, name, options.device, facts.dtype)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as scratch:
        samples = _samples(Path(scratch), options)
        loss = _stages(model, samples, Path(scratch), options, meter)
    record = {
        "backbone": name,
        "options": asdict(options),
        "dtype": facts.dtype,
        "device": device_label(options.device),
        "parameters": facts.parameters,
        "needed_bytes_estimated": needed,
        "stages": [asdict(stage) for stage in meter.stages],
        "loss": loss,
        "versions": package_versions(),
        "python": sys.version.split()[0],
    }
    if output is not None:
        write_json(output, record, recorded=False)
    return record


def needed_bytes(facts: Facts, options: Options) -> int:
    """Return the memory that the largest stage needs, estimated."""
    text = facts.template.prompt + CAPTION_TOKENS
    batch = Batch(options.batch_size, text)
    layers = range(facts.num_layers - options.layers, facts.num_layers)
    # The whole model is held until training begins, and nothing is loaded again.
    return max(
        states_bytes(facts, batch),
        predict_bytes(facts, Batch(GENERATED, text), 1, NEW_TOKENS),
        train_bytes(facts, batch, layers, options.rank, CAPTION_TOKENS, dropout=True),
    )


def _stages(
    model: Backbone, samples: list[CaptionedImage], scratch: Path, options: Options, meter: Meter
) -> list[float]:
    """Run states, gap, generation, trunk and training in turn; return the losses."""
    first = model.num_layers - options.layers
    with meter.stage("states", len(samples), "pairs"):
        vision, text = _states(model, samples, options)
    with meter.stage("gap", model.num_layers, "layers"):
        gap = _gap(vision, text)
    with meter.stage("features", GENERATED, "images"):
        shown = [load_image(sample.path) for sample in samples[:GENERATED]]
        with torch.inference_mode():
            seen = model.image_features(model.pixels(shown))
    with meter.stage("generate", 0, "tokens") as stage:
        stage.count = generate_tokens(model, seen, NEW_TOKENS, 1).numel()
    path = scratch / "trunk.h5"
    with meter.stage("trunk", len(samples), "images"), _whole_again(model):
        _write_trunk(model, samples, first, path, options.batch_size)
    trunk = read_trunk(path)
    with meter.stage("adapter", options.layers, "layers"):
        model.cut_below(first)
        layers = list(range(first, model.num_layers))
        generator = torch.Generator().manual_seed(options.seed)
        alpha = 2.0 * options.rank
        setup = Setup(model, layers, options.rank, alpha, 0.05, gap, 0.0, "unit", generator)
        tail = Tail(adapt("gap-init", setup).model, model)
    with meter.stage("train", options.steps * options.batch_size, "captions"):
        return _train(tail, trunk, options)


def _samples(folder: Path, options: Options) -> list[CaptionedImage]:
    """Write images of noise and return them with captions of known words."""
    draw = random.Random(options.seed)
    noise = np.random.default_rng(options.seed)
    samples = []
    for index in range(options.pairs):
        path = folder / f"{index}.png"
        # Coarse noise: as good here, and a small file.
        small = noise.integers(0, 255, (PHOTO[1] // 16, PHOTO[0] // 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize(PHOTO).save(path, compress_level=1)
        caption = " ".join(draw.choices(WORDS.split(), k=draw.randint(6, 14)))
        samples.append(CaptionedImage(index, path, (caption,), "train"))
    return samples


def _states(
    model: Backbone, samples: list[CaptionedImage], options: Options
) -> tuple[Tensor, Tensor]:
    found = []
    for start in range(0, len(samples), options.batch_size):
        block = samples[start : start + options.batch_size]
        pairs = [(sample, sample.captions[0]) for sample in block]
        found.append(
            pooled_states(
                model, pairs, pooling="mean", context="joint", max_caption_tokens=CAPTION_TOKENS
            )
        )
    vision, text = (torch.cat([pair[side] for pair in found], dim=1) for side in (0, 1))
    return vision, text


def _gap(vision: Tensor, text: Tensor) -> GapVectors:
    """Return the smoothed gap of each layer."""
    layers, pairs = vision.shape[:2]
    neighbours = min(DEFAULT_NEIGHBOURS, pairs - 1)
    sides = zip(text.numpy(), vision.numpy(), strict=True)
    return GapVectors(
        layers=tuple(range(layers)),
        **measure_layers(sides, neighbours),
        num_layers=layers,
        pairs=pairs,
        pooling="mean",
        neighbours=neighbours,
    )


def _write_trunk(
    model: Backbone, samples: list[CaptionedImage], first: int, path: Path, batch_size: int
) -> None:
    """Write the trunk below `first` as `gapinit trunk` does."""
    data = Manifest("rehearsal", path.parent, {}, {"train": samples})
    images, encoded = encoded_texts(model, data, "train", CAPTION_TOKENS, "rehearsal")
    write_trunk(model, images, encoded, first, path, {}, images_per_batch=batch_size)


@contextmanager
def _whole_again(model: Backbone) -> Iterator[None]:
    """Put back what `keep_below` takes away, so that the model need not be built twice."""
    decoder = model.decoder
    before = dict(decoder._modules)
    try:
        yield
    finally:
        decoder._modules.update(before)


def _train(tail: Tail, trunk: Trunk, options: Options) -> list[float]:
    """Take training steps and return their losses; one that is not finite is an error."""
    trained = [weight for weight in tail.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    order = np.random.default_rng(options.seed)
    tail.train()
    losses = []
    for step in range(options.steps):
        chosen = order.integers(0, len(trunk), options.batch_size).tolist()
        batch = {name: value.to(options.device) for name, value in trunk.batch(chosen).items()}
        loss = tail(**batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise GapinitError(f"step {step}: the loss is {losses[-1]}")
    return losses
