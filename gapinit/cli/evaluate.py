"""From adapters to predictions and scores: features, predict, score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gapinit.cli.options import (
    Backbone,
    Device,
    Manifest,
    Output,
    Shard,
    Split,
    device_name,
    same_number,
)

Predictions = Annotated[
    list[Path], typer.Option(help="Predictions in the benchmark's result format; may be repeated.")
]
Outputs = Annotated[list[Path], typer.Option(help="Scores, one file per --predictions.")]

app = typer.Typer()
score_app = typer.Typer(no_args_is_help=True, help="Score predictions.")


@app.command()
def features(
    backbone: Backbone,
    manifest: Manifest,
    output: Output,
    split: Split = "test",
    shard: Shard = None,
    device: Device = "auto",
) -> None:
    """Compute a split's image features once for all runs (HDF5)."""
    device = device_name(device)
    from gapinit.evaluate.predict import extract_features

    extract_features(backbone, manifest, output, split=split, shard=shard, device=device)


@app.command("predict")
def predict_command(
    backbone: Backbone,
    manifest: Annotated[
        list[Path], typer.Option(help="manifest.json of a dataset; may be repeated.")
    ],
    features: Annotated[
        list[Path],
        typer.Option(help="Image features by `gapinit features`, or all shards, per dataset."),
    ],
    output: Annotated[
        list[Path],
        typer.Option(help="Answers by dataset for the first adapter, then for the next."),
    ],
    adapter: Annotated[
        list[Path] | None,
        typer.Option(help="PEFT adapter folder; may be repeated; none: zero-shot."),
    ] = None,
    num_beams: Annotated[int, typer.Option(help="1: greedy.", min=1)] = 1,
    max_new_tokens: Annotated[
        list[int] | None,
        typer.Option(help="One for all datasets, or one per dataset; default: 32.", min=1),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    shard: Shard = None,
    device: Device = "auto",
) -> None:
    """Write captions or answers for one or more splits, each in its benchmark's format.

    The backbone is loaded once for all datasets and adapters.
    """
    adapters: list[Path | None] = [*adapter] if adapter else [None]
    wide = len(manifest)
    lengths = max_new_tokens or [32]
    lengths = lengths * wide if len(lengths) == 1 else lengths
    shards = max(1, len(features) // wide)
    same_number("features", features, wide * shards, "of --manifest, or as many shards of each")
    same_number("max-new-tokens", lengths, wide, "of --manifest")
    same_number("output", output, wide * len(adapters), "of --manifest and --adapter")

    device = device_name(device)
    from gapinit.evaluate.predict import Questions, predict_several

    predict_several(
        backbone,
        [
            Questions(path, features[place * shards : (place + 1) * shards], lengths[place])
            for place, path in enumerate(manifest)
        ],
        adapters,
        [output[start : start + wide] for start in range(0, len(output), wide)],
        num_beams=num_beams,
        batch_size=batch_size,
        shard=shard,
        device=device,
    )


@app.command()
def gather(
    manifest: Annotated[
        list[Path], typer.Option(help="manifest.json of a dataset; may be repeated.")
    ],
    part: Annotated[
        list[Path], typer.Option(help="Parts by `gapinit predict --shard`, output by output.")
    ],
    output: Annotated[
        list[Path],
        typer.Option(help="Predictions by dataset for the first adapter, then for the next."),
    ],
) -> None:
    """Join parts of predictions from several jobs."""
    from gapinit.evaluate.predictions import gather_predictions

    shards = max(1, len(part) // len(output))
    same_number("part", part, len(output) * shards, "of --output, or as many for each")
    for place, path in enumerate(output):
        own = part[place * shards : (place + 1) * shards]
        gather_predictions(manifest[place % len(manifest)], own, path)


@score_app.command("captions")
def score_captions_command(
    references: Annotated[Path, typer.Option(help="COCO captions JSON or Karpathy JSON.")],
    predictions: Predictions,
    output: Outputs,
    metrics: Annotated[
        str, typer.Option(help="Some of cider,bleu,meteor,rouge.")
    ] = "cider,bleu,meteor,rouge",
) -> None:
    """Score captions by CIDEr, BLEU, METEOR and ROUGE-L, in percent.

    Java is started once for all predictions, and references are read once.
    """
    same_number("output", output, len(predictions), "of --predictions")
    from gapinit.evaluate.metrics.captions import score_captions

    score_captions(references, predictions, output, metrics.replace(" ", "").split(","))


@score_app.command("vqa")
def score_vqa_command(
    questions: Annotated[Path, typer.Option(help="VQA questions JSON.")],
    annotations: Annotated[Path, typer.Option(help="VQAv2 or OK-VQA annotations JSON.")],
    predictions: Predictions,
    output: Outputs,
    answers: Annotated[
        str, typer.Option(help="Field of the annotators' answers: answer or (OK-VQA) raw_answer.")
    ] = "answer",
) -> None:
    """Score answers by the official VQA accuracy, in percent."""
    same_number("output", output, len(predictions), "of --predictions")
    from gapinit.evaluate.metrics.vqa import score_vqa

    for path, result in zip(predictions, output, strict=True):
        score_vqa(questions, annotations, path, result, answers=answers)


@score_app.command("pope")
def score_pope_command(
    questions: Annotated[list[Path], typer.Option(help="POPE question file; may be repeated.")],
    predictions: Annotated[
        list[Path],
        typer.Option(
            help="Answers: one file per --questions, or one file with categories per --output."
        ),
    ],
    output: Outputs,
) -> None:
    """Score yes/no answers by POPE's rules, in percent."""
    from gapinit.evaluate.metrics.pope import score_pope

    if len(output) == 1:
        score_pope(questions, predictions, output[0])
        return
    same_number("output", output, len(predictions), "of --predictions")
    for path, result in zip(predictions, output, strict=True):
        score_pope(questions, [path], result)
