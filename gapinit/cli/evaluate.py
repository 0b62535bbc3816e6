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
    from gapinit.predict import extract_features

    extract_features(backbone, manifest, output, split=split, device=device_name(device))


@app.command()
def predict(
    backbone: Backbone,
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
    """Caption a split and write COCO's result format."""
    from gapinit.predict import predict_captions

    predict_captions(
        backbone,
        features,
        adapter,
        output,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        device=device_name(device),
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
