"""From adapters to predictions and scores: features, predict, score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gapinit.cli.options import Backbone, Device, Manifest, Output, Split, device_name

app = typer.Typer()
score_app = typer.Typer(no_args_is_help=True, help="Score predictions.")


@app.command()
def features(
    backbone: Backbone,
    manifest: Manifest,
    output: Output,
    split: Split = "test",
    device: Device = "auto",
) -> None:
    """Compute a split's image features once for all runs (HDF5)."""
    device = device_name(device)
    from gapinit.predict import extract_features

    extract_features(backbone, manifest, output, split=split, device=device)


@app.command("predict")
def predict_command(
    backbone: Backbone,
    manifest: Manifest,
    features: Annotated[Path, typer.Option(help="Image features, of `gapinit features`.")],
    output: Output,
    adapter: Annotated[
        Path | None, typer.Option(help="PEFT adapter folder; none: zero-shot.")
    ] = None,
    num_beams: Annotated[int, typer.Option(help="1: greedy.", min=1)] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    device: Device = "auto",
) -> None:
    """Caption or answer a split, in the benchmark's own format."""
    device = device_name(device)
    from gapinit.predict import predict

    predict(
        backbone,
        manifest,
        features,
        adapter,
        output,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        device=device,
    )


@score_app.command("captions")
def score_captions_command(
    references: Annotated[Path, typer.Option(help="COCO captions JSON or Karpathy JSON.")],
    predictions: Annotated[Path, typer.Option(help="COCO result format.")],
    output: Output,
    metrics: Annotated[
        str, typer.Option(help="Some of cider,bleu,meteor,rouge.")
    ] = "cider,bleu,meteor,rouge",
) -> None:
    """Score captions by CIDEr, BLEU, METEOR and ROUGE-L, in percent."""
    from gapinit.metrics.captions import score_captions

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    score_captions(references, predictions, output, metrics=names)


@score_app.command("vqa")
def score_vqa_command(
    questions: Annotated[Path, typer.Option(help="VQA questions JSON.")],
    annotations: Annotated[Path, typer.Option(help="VQAv2 or OK-VQA annotations JSON.")],
    predictions: Annotated[Path, typer.Option(help="VQA result format.")],
    output: Output,
    answers: Annotated[
        str, typer.Option(help="Field of the annotators' answers: answer or (OK-VQA) raw_answer.")
    ] = "answer",
) -> None:
    """Score answers by the official VQA accuracy, in percent."""
    from gapinit.metrics.vqa import score_vqa

    score_vqa(questions, annotations, predictions, output, answers=answers)


@score_app.command("pope")
def score_pope_command(
    questions: Annotated[list[Path], typer.Option(help="POPE question file; may be repeated.")],
    predictions: Annotated[
        list[Path],
        typer.Option(help="Answers: one file for each of --questions, or one with categories."),
    ],
    output: Output,
) -> None:
    """Score yes/no answers by POPE's rules, in percent."""
    from gapinit.metrics.pope import score_pope

    score_pope(questions, predictions, output)
