"""A training step of the tail against Hugging Face Trainer with PEFT on the whole model.

Both train the same rank-1 adapter on the last 6 of 32 layers with the same recipe, batches and
order, through Trainer; the peer reads and decodes a JPEG file a sample, as a user would write it,
ours reads the trunk. A step's time runs from one step's end to the next, data included.
The share of the matrix-product limit is the time that the tail's operations (`flops.py`) would take
at the rate of its matrix products, measured between the turns, divided by a step's time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoProcessor,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from benchmarks.flops import Work, full_flops, products, tail_flops
from benchmarks.measure import Result, Spread, Target, matrix_rate, ratios, read_rate
from benchmarks.scaled import ADAPTED, SCALE, write_world
from gapinit.adapters.lora import add_lora
from gapinit.backbones import load_backbone
from gapinit.data.manifest import read_manifest
from gapinit.train.tail_module import Tail
from gapinit.train.trunk.write import Trunk, extract_trunk, read_trunk

IMAGES, BATCH, MAX_TOKENS = 64, 16, 32
PEER_STEPS, OUR_STEPS, TURNS = 2, 6, 4
LOSS_TOLERANCE = 1e-4


class Clock(TrainerCallback):
    """Records the end time and the loss of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Record the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        """Record the loss."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def step(self) -> float:
        """Return the mean time of a step without the first one."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


class Photographs(torch.utils.data.Dataset[dict[str, Any]]):
    """Images and captions through the model's processor, one sample at a time."""

    def __init__(self, manifest: Path, processor: Any, trunk: Trunk) -> None:
        images = read_manifest(manifest).captions("train")
        self._pairs = [(image.path, caption) for image in images for caption in image.captions]
        self._processor = processor

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, caption = self._pairs[index]
        image = Image.open(path).convert("RGB")
        found = self._processor(images=image, text=caption, return_tensors="pt")
        return {"pixel_values": found["pixel_values"][0], "input_ids": found["input_ids"][0]}


def collator(processor: Any, queries: int) -> Any:
    """Return a collator: captions end with EOS; image tokens and BOS have no label."""
    tokenizer = processor.tokenizer

    def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        rows = [[*item["input_ids"].tolist(), tokenizer.eos_token_id] for item in items]
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, : queries + 1] = -100
        pixels = torch.stack([item["pixel_values"] for item in items])
        return {**batch, "labels": labels, "pixel_values": pixels}

    return collate


def trainer(
    model: nn.Module, data: Any, collate: Any, steps: int, device: str, clock: Clock
) -> Trainer:
    """Return a Trainer with the paper's recipe; the same for both sides."""
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=2e-4,
        lr_scheduler_type="constant",  # the sides train for different numbers of steps
        optim="adamw_torch",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=0,
        data_seed=0,
        use_cpu=device == "cpu",
    )
    made = Trainer(
        model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[clock]
    )
    made.remove_callback(PrinterCallback)
    return made


def adapted(backbone: Any) -> Any:
    """Add the same adapter to a model, independent of earlier random numbers."""
    set_seed(1)
    return add_lora(backbone, ADAPTED, rank=1, alpha=2.0, dropout=0.0, init_lora_weights="gaussian")


def write_trunk(world: Path, manifest: Path, output: Path, device: str) -> float:
    """Write the trunk and return the seconds it took."""
    started = time.perf_counter()
    extract_trunk(
        world / "backbone",
        manifest,
        world / "layers.json",
        "naive",
        output,
        max_tokens=MAX_TOKENS,
        device=device,
    )
    return time.perf_counter() - started


def measure(world: Path, device: str, full: bool) -> Result:
    """Alternate both sides and return the two rows of the table."""
    manifest, trunk_file = world / "data" / "manifest.json", world / "trunk.h5"
    extraction = write_trunk(world, manifest, trunk_file, device)
    trunk = read_trunk(trunk_file)
    ours = load_backbone(world / "backbone", device)
    ours.cut_below(trunk.first_layer)
    tail = Tail(adapted(ours), ours)
    whole = load_backbone(world / "backbone", device)
    # The model as transformers loads it, with PEFT's modules.
    peer_model = adapted(whole)
    processor = AutoProcessor.from_pretrained(world / "backbone")
    photographs = Photographs(manifest, processor, trunk)
    config = whole.model.config
    collate = collator(processor, config.num_query_tokens)
    clocks: dict[str, list[Clock]] = {"ours": [], "peer": []}

    def run(side: str, steps: int) -> float:
        clock = Clock()
        if side == "ours":
            trainer(tail, trunk, trunk.collate, steps + 1, device, clock).train()
        else:
            trainer(peer_model, photographs, collate, steps + 1, device, clock).train()
        clocks[side].append(clock)
        return clock.step()

    own, theirs, rates = [], [], []
    for turn in range(TURNS):
        order = ("ours", "peer") if turn % 2 == 0 else ("peer", "ours")
        found = {side: run(side, OUR_STEPS if side == "ours" else PEER_STEPS) for side in order}
        own.append(found["ours"])
        theirs.append(found["peer"])
        rates.append(matrix_rate(products(mean_work(trunk), config, len(ADAPTED)), device))
    pairs = list(zip(clocks["ours"][0].losses, clocks["peer"][0].losses, strict=False))
    difference = max(abs(a - b) / abs(b) for a, b in pairs)
    if difference > LOSS_TOLERANCE:
        raise SystemExit(f"the two sides do not train the same: losses {pairs}")
    work = mean_work(trunk)
    flops, all_flops = tail_flops(work, config, 6), full_flops(work, config, 6)
    limit = Spread([flops / rate / step for rate, step in zip(rates, own, strict=True)])
    shape = "BLIP-2 OPT-2.7B" if full else f"BLIP-2 OPT-2.7B with every width / {SCALE}"
    return Result(
        "train_step",
        [
            Target(
                "training step incl. data loading, last 6 of 32 layers",
                "Trainer + PEFT, full forward, JPEG",
                ratios(own, theirs),
                "at least",
                10.0,
                scale=shape,
            ),
            Target(
                "the same, as share of the tail's matrix-product limit",
                "machine limit",
                limit,
                "at least",
                0.6,
                unit="%",
                scale=shape,
            ),
        ],
        {
            "seconds a step, ours": Spread(own),
            "seconds a step, peer": Spread(theirs),
            "operations a step, ours": flops,
            "operations a step, peer": all_flops,
            "ratio of operations": all_flops / flops,
            "matrix products, operations a second": Spread(rates),
            "reading the trunk's file, bytes a second": read_rate(trunk_file),
            "seconds of the trunk an image, once": extraction / IMAGES,
            "largest relative difference of a loss": difference,
        },
        {"images": IMAGES, "batch": BATCH, "turns": TURNS, "device": device, "full": full},
    )


def mean_work(trunk: Trunk) -> Work:
    """Return a batch with the set's distribution of lengths; Trainer's batches are random."""
    order = sorted(range(len(trunk)), key=lambda index: len(trunk[index]["input_ids"]))
    batch = trunk.batch(order[:: max(1, len(order) // BATCH)][:BATCH])
    return Work(batch["length"].tolist(), (batch["labels"] != -100).sum(dim=1).tolist())


def main() -> None:
    """Run the comparison on the scaled shape, or at full size on a GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda; cuda takes the full size")
    device: str = parser.parse_args().device
    full = device != "cpu"
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        write_world(world, IMAGES, full)
        measure(world, device, full).write()


if __name__ == "__main__":
    main()
