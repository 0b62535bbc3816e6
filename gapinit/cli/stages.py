"""From a backbone to one adapter a run: backbone, states, gap, layers, trunk, train."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gapinit.cli.options import (
    Backbone,
    Device,
    Manifest,
    Output,
    Split,
    choice,
    device_name,
    without_options,
)

app = typer.Typer()


@app.command()
def backbone(
    settings: Annotated[Path, typer.Option(help="Backbone file, config/backbones/*.yaml.")],
    output: Output,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the pretraining dataset, if it has one.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Make a backbone's save_pretrained folder."""
    from gapinit.backbones import make_backbone

    make_backbone(settings, data, output, threads)


@app.command()
def states(
    backbone: Backbone,
    manifest: Manifest,
    output: Output,
    pairs: Annotated[int, typer.Option(help="Calibration pairs to draw.", min=2)],
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    split: Split = "train",
    pooling: Annotated[str, typer.Option(help="mean or last.")] = "mean",
    context: Annotated[
        str, typer.Option(help="joint: one pass over image and caption; separate: text alone.")
    ] = "joint",
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    max_caption_tokens: Annotated[int, typer.Option(min=2)] = 32,
    device: Device = "auto",
) -> None:
    """Write pooled vision and text hidden states of every layer (HDF5)."""
    device = device_name(device)
    from gapinit.states import extract_states

    extract_states(
        backbone,
        manifest,
        output,
        pairs=pairs,
        seed=seed,
        split=split,
        pooling=choice(pooling, "pooling", ("mean", "last")),
        context=choice(context, "context", ("joint", "separate")),
        batch_size=batch_size,
        max_caption_tokens=max_caption_tokens,
        device=device,
    )


@app.command()
def gap(
    states: Annotated[
        list[Path], typer.Option(help="States file; several are mixed, a pair of each in turn.")
    ],
    output: Output,
    size: Annotated[int, typer.Option(help="Calibration pairs, a prefix of the states.", min=2)],
    heldout: Annotated[
        int, typer.Option(help="Pairs after those, to measure the gap again.", min=0)
    ] = 0,
    neighbours: Annotated[int, typer.Option(help="k of SPOT-Gap.", min=1)] = 10,
    alpha_semantic: float = 1.0,
    alpha_geometric: float = 1.0,
    smoothing: Annotated[str, typer.Option(help="spot or mean.")] = "spot",
) -> None:
    """Estimate each layer's gap vector, SPOT-Gap score, spectrum and cone (HDF5)."""
    from gapinit.gap_file import estimate_gap_file

    estimate_gap_file(
        states,
        output,
        size=size,
        heldout=heldout,
        neighbours=neighbours,
        alpha_semantic=alpha_semantic,
        alpha_geometric=alpha_geometric,
        smoothing=choice(smoothing, "smoothing", ("spot", "mean")),
    )


@app.command()
def layers(
    gap: Annotated[Path, typer.Option(help="Gap file.")],
    output: Output,
    num_layers: Annotated[int, typer.Option(help="Layers to adapt.", min=1)],
    exclude_bottom: Annotated[
        int, typer.Option(help="Bottom layers that GG-Safe never takes.", min=0)
    ] = 0,
) -> None:
    """Choose the adapted layers: naive (last k), gg-safe (top k by SPOT-Gap) and all (JSON)."""
    from gapinit.layers import write_layers

    write_layers(gap, output, num_layers=num_layers, exclude_bottom=exclude_bottom)


@app.command()
def trunk(
    backbone: Backbone,
    manifest: Manifest,
    layers: Annotated[Path, typer.Option(help="Layer choice, of `gapinit layers`.")],
    strategy: Annotated[str, typer.Option(help="naive, gg-safe or all.")],
    output: Output,
    split: Split = "train",
    max_tokens: Annotated[
        int, typer.Option(help="Of a caption, or of prompt and answer.", min=2)
    ] = 32,
    device: Device = "auto",
) -> None:
    """Compute the frozen part's states on the training set, once for all runs (HDF5)."""
    device = device_name(device)
    from gapinit.trunk import extract_trunk

    extract_trunk(
        backbone,
        manifest,
        layers,
        choice(strategy, "strategy", ("naive", "gg-safe", "all")),
        output,
        split=split,
        max_tokens=max_tokens,
        device=device,
    )


@app.command()
def train(
    run: Annotated[str, typer.Option(help="The run's path, which spells its factors.")],
    backbone: Backbone,
    trunk: Annotated[Path, typer.Option(help="Trunk of the run's layers.")],
    layers: Annotated[Path, typer.Option(help="Layer choice, of `gapinit layers`.")],
    gap: Annotated[Path, typer.Option(help="Gap file: direction, and what B is compared with.")],
    output: Output,
    alpha_per_rank: float = 2.0,
    dropout: float = 0.05,
    learning_rate: float = 2e-4,
    scheduler: str = "cosine",
    warmup_ratio: float = 0.0,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    batch_size: int = 32,
    gradient_accumulation: int = 1,
    group_by_length: Annotated[
        bool, typer.Option(help="Batches of captions of like length: less padding.")
    ] = False,
    num_processes: Annotated[
        int,
        typer.Option(help="Train on several GPUs (or CPU processes), the batch divided.", min=1),
    ] = 1,
    device: Device = "auto",
) -> None:
    """Train one run on the trunk: adapter folder, step log and run.json."""
    from gapinit.config import Lora, Training
    from gapinit.runs import Run
    from gapinit.settings import check_settings

    chosen = Run.parse(run)
    origin = "gapinit train"
    recipe = {
        "learning_rate": learning_rate,
        "scheduler": scheduler,
        "warmup_ratio": warmup_ratio,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "batch_size": batch_size,
        "gradient_accumulation": gradient_accumulation,
        "group_by_length": group_by_length,
        "epochs": chosen.epochs,
    }
    checked = check_settings(recipe, Training, origin)
    lora = check_settings({"alpha_per_rank": alpha_per_rank, "dropout": dropout}, Lora, origin)

    if num_processes > 1:
        from gapinit.launch import launch, require_divisible

        require_divisible(batch_size, num_processes)
        return launch(
            without_options(sys.argv[1:], "--num-processes", "--device"), num_processes, device
        )
    device = device_name(device)
    from gapinit.train import train_run

    train_run(
        chosen,
        backbone,
        trunk,
        layers,
        gap,
        output,
        recipe=checked,
        lora=lora,
        device=device,
    )
