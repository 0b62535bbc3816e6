"""Fine-tune BLIP-2 at rank 1 from the modality gap, on a folder of captioned images.

    python examples/blip2_gap_init.py --model Salesforce/blip2-opt-2.7b --images FOLDER --output OUT

FOLDER holds images and `metadata.jsonl`, one line an image, as Hugging Face's imagefolder has it:
{"file_name": "0001.jpg", "text": "two dogs on a beach"}. OUT becomes an ordinary PEFT adapter.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Trainer,
    TrainingArguments,
)

import gapinit

Pair = tuple[Path, str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Estimate the gap, point the adapters along it, train, save."""
    options = read_options(arguments)
    pairs = read_pairs(options.images)

    # The ten lines. Everything else in this file is Hugging Face as usual.
    model = Blip2ForConditionalGeneration.from_pretrained(options.model, dtype=options.dtype)
    processor = Blip2Processor.from_pretrained(options.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    gap = gapinit.estimate_gap(model, processor, pairs[: options.calibration])
    targets = gap.target_modules(gap.select(options.layers))
    config = LoraConfig(r=1, lora_alpha=2, lora_dropout=0.05, target_modules=targets)
    peft_model = get_peft_model(model, config)
    print(gapinit.initialize_lora_gap_weights(peft_model, gap))
    train(peft_model, processor, pairs, options, gapinit.GapAlignmentCallback(gap))
    peft_model.save_pretrained(options.output)


def train(
    model: Any, processor: Any, pairs: list[Pair], options: argparse.Namespace, callback: Any
) -> None:
    """Train with Hugging Face's Trainer; the log shows the alignment of B with the gap."""

    def collate(batch: list[Pair]) -> dict[str, torch.Tensor]:
        images = [Image.open(path).convert("RGB") for path, _ in batch]
        captions = [f"{caption}{processor.tokenizer.eos_token}" for _, caption in batch]
        inputs = dict(processor(images, captions, padding=True, return_tensors="pt"))
        ignored = inputs["attention_mask"] == 0
        ignored |= inputs["input_ids"] == model.config.image_token_index
        inputs["labels"] = inputs["input_ids"].masked_fill(ignored, -100)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        return inputs

    recipe = TrainingArguments(
        output_dir=str(options.output),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=2e-4,
        lr_scheduler_type="cosine",
        logging_steps=max(1, options.steps // 10),
        save_strategy="no",
        remove_unused_columns=False,
        report_to=[],
    )
    dataset: Any = pairs
    Trainer(model, recipe, collate, dataset, callbacks=[callback]).train()


def read_pairs(folder: Path) -> list[Pair]:
    """Read `metadata.jsonl`."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines if line.strip()]
    return [(folder / entry["file_name"], entry["text"]) for entry in entries]


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="hub name or local folder of a BLIP-2 (OPT)")
    parser.add_argument("--images", required=True, type=Path, help="folder with metadata.jsonl")
    parser.add_argument("--output", required=True, type=Path, help="folder for the adapter")
    parser.add_argument("--dtype", default="auto", help="of the frozen model, e.g. bfloat16")
    parser.add_argument("--calibration", type=int, default=256, help="pairs the gap is taken from")
    parser.add_argument("--layers", type=int, default=6, help="how many of the last layers")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
