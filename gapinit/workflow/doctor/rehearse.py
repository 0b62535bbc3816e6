"""`gapinit rehearse`: run and time every stage of a run on the real shapes with random weights.

Nothing is downloaded. The model is built once in memory, and the stages run on it in the order of
the workflow. The losses have no meaning. A rehearsal shows that every shape, dtype and device
works, and measures time and memory.
"""

from __future__ import annotations

import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from gapinit.adapters.methods.setup import Setup, adapt
from gapinit.artifacts.artifacts import package_versions
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
from gapinit.progress import print_table, show_bytes
from gapinit.states.states import pooled_states
from gapinit.train.tail_module import Tail
from gapinit.train.trunk.write import Trunk, encoded_texts, read_trunk, write_trunk
from gapinit.workflow.doctor.costs import Batch, predict_bytes, states_bytes, train_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from gapinit.backbones.base import Backbone

CAPTION_TOKENS = 32
NEW_TOKENS = 32
GENERATED = 4
SEED = 0
WORDS = "a man dog bench park two red with on the in and photo of sitting near street cat"


@dataclass(frozen=True)
class Options:
    """The size of a rehearsal, and its device."""

    device: str = "cpu"
    pairs: int = 64
    steps: int = 20
    layers: int = 6
    rank: int = 1
    batch_size: int = 8


def rehearse(
    architecture: Architecture, facts: Facts, name: str, options: Options
) -> dict[str, Any]:
    """Run all stages and return their seconds, memory and throughput.

    Raises GapinitError before the model is built if the device has too little free memory.
    """
    needed, free = needed_bytes(facts, options), free_memory(options.device)
    if free is not None and needed > free:
        raise GapinitError(
            f"{name}: about {show_bytes(needed)} needed, {show_bytes(free)} free on "
            f"{options.device}. Lower --batch-size, or use --device meta, which prints shapes only"
        )
    meter = Meter(options.device)
    torch.manual_seed(SEED)
    with meter.stage("build", facts.parameters, "weights"):
        model = build_architecture(architecture, name, options.device, facts.dtype)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as scratch:
        samples = _samples(Path(scratch), options)
        loss = _stages(model, samples, Path(scratch), options, meter)
    return {
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


def needed_bytes(facts: Facts, options: Options) -> int:
    """Return the estimated memory of the largest stage."""
    text = facts.template.prompt + CAPTION_TOKENS
    batch = Batch(options.batch_size, text)
    layers = range(facts.num_layers - options.layers, facts.num_layers)
    # The whole model stays in memory until training.
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
    with meter.stage("trunk", len(samples), "images"), _layers_restored(model):
        data = Manifest("rehearsal", scratch, {}, {"train": samples})
        images, encoded = encoded_texts(model, data, "train", CAPTION_TOKENS, "rehearsal")
        write_trunk(model, images, encoded, first, path, {}, images_per_batch=options.batch_size)
    trunk = read_trunk(path)
    with meter.stage("adapter", options.layers, "layers"):
        model.cut_below(first)
        layers = list(range(first, model.num_layers))
        generator = torch.Generator().manual_seed(SEED)
        alpha = 2.0 * options.rank
        setup = Setup(model, layers, options.rank, alpha, 0.05, gap, 0.0, "unit", generator)
        tail = Tail(adapt("gap-init", setup).model, model)
    with meter.stage("train", options.steps * options.batch_size, "captions"):
        return _train(tail, trunk, options)


def _samples(folder: Path, options: Options) -> list[CaptionedImage]:
    """Write images of noise and return them with captions of random words."""
    draw, noise = random.Random(SEED), np.random.default_rng(SEED)
    samples = []
    for index in range(options.pairs):
        path = folder / f"{index}.png"
        # Coarse noise, so that the files are small.
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


@contextmanager
def _layers_restored(model: Backbone) -> Iterator[None]:
    """Restore the layers that `write_trunk` removes, so that the model is built only once."""
    decoder = model.decoder
    before = dict(decoder._modules)
    try:
        yield
    finally:
        decoder._modules.update(before)


def _train(tail: Tail, trunk: Trunk, options: Options) -> list[float]:
    """Run the training steps and return their losses; raise GapinitError if one is not finite."""
    trained = [weight for weight in tail.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    order = np.random.default_rng(SEED)
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


@dataclass
class Stage:
    """Measurements of one stage."""

    name: str
    count: int
    unit: str
    seconds: float = 0.0
    peak_bytes: int = 0
    """GPU: peak of allocated memory in the stage; CPU: peak of the process since its start."""


class Meter:
    """Measures one stage after another on a device."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._device = device
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str, count: int, unit: str) -> Iterator[Stage]:
        """Measure the block, which processes `count` of `unit`; the block may set `count`."""
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        print(f"{name} ...", file=sys.stderr, flush=True)
        measured = Stage(name, count, unit)
        started = time.perf_counter()
        yield measured
        if self._cuda:
            torch.cuda.synchronize(self._device)
        measured.seconds, measured.peak_bytes = time.perf_counter() - started, self._peak()
        self.stages.append(measured)

    def _peak(self) -> int:
        if self._cuda:
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def print_stages(record: dict[str, Any]) -> None:
    """Print the stages of a rehearsal as a table."""
    rows = [
        (
            stage["name"],
            f"{stage['seconds']:.2f}",
            show_bytes(stage["peak_bytes"]),
            f"{stage['count'] / stage['seconds']:,.1f} {stage['unit']}/s",
        )
        for stage in record["stages"]
    ]
    title = f"{record['backbone']} ({record['dtype']}, random weights) on {record['device']}"
    print_table(title, ("stage", "seconds", "peak memory", "throughput"), rows)
    loss = record["loss"]
    print(f"\nloss {loss[0]:.3f} to {loss[-1]:.3f} in {len(loss)} steps (random weights)")
    print(f"estimated memory: {show_bytes(record['needed_bytes_estimated'])}")


def free_memory(device: str) -> int | None:
    """Return the free bytes of a device; None if the system does not report them."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    table = Path("/proc/meminfo")
    lines = table.read_text(encoding="ascii").splitlines() if table.is_file() else []
    free = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(free[0]) * 1024 if free else None


def device_label(device: str) -> str:
    """Return the name of a device."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
