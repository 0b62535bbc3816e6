"""From a backbone to one adapter per run: backbone, states, gap, layers, trunk, train."""

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
    choice,
    device_name,
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
    shard: Shard = None,
    device: Device = "auto",
) -> None:
    """Write pooled vision and text hidden states of every layer (HDF5)."""
    device = device_name(device)
    from gapinit.states.states import extract_states

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
        shard=shard,
        device=device,
    )


@app.command()
def gap(
    states: Annotated[
        list[Path],
        typer.Option(help="States file, or all its shards; several files are mixed pair by pair."),
    ],
    output: Output,
    size: Annotated[int, typer.Option(help="Number of calibration pairs (the first).", min=2)],
    heldout: Annotated[int, typer.Option(help="Number of held-out pairs (the next).", min=0)] = 0,
    neighbours: Annotated[int, typer.Option(help="k of SPOT-Gap.", min=1)] = 10,
    alpha_semantic: float = 1.0,
    alpha_geometric: float = 1.0,
    smoothing: Annotated[str, typer.Option(help="spot or mean.")] = "spot",
) -> None:
    """Estimate each layer's gap vector, SPOT-Gap score, spectrum and cone (HDF5)."""
    from gapinit.gap.gap_file import estimate_gap_file

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
        int, typer.Option(help="Lowest layers that GG-Safe excludes.", min=0)
    ] = 0,
) -> None:
    """Select the adapted layers: naive (last k), gg-safe (top k by SPOT-Gap), all (JSON)."""
    from gapinit.gap.layers import write_layers

    write_layers(gap, output, num_layers=num_layers, exclude_bottom=exclude_bottom)


@app.command()
def trunk(
    backbone: Backbone,
    manifest: Manifest,
    layers: Annotated[Path, typer.Option(help="Layer choice by `gapinit layers`.")],
    strategy: Annotated[str, typer.Option(help="naive, gg-safe, all or all-vision.")],
    output: Output,
    split: Split = "train",
    max_tokens: Annotated[
        int, typer.Option(help="Limit for a caption, or for prompt plus answer.", min=2)
    ] = 32,
    mode: Annotated[
        str,
        typer.Option(
            help="Cached content: layer (states below the adapted layers), vision (image tokens), "
            "off (no states: the vision tower runs in training), or auto."
        ),
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Type of states on disk: float32, bfloat16, or auto: the model's.")
    ] = "auto",
    shard: Shard = None,
    device: Device = "auto",
) -> None:
    """Compute the frozen part's states on the training set, once for all runs (HDF5)."""
    device = device_name(device)
    from gapinit.train.trunk.write import extract_trunk

    extract_trunk(
        backbone,
        manifest,
        layers,
        choice(strategy, "strategy", ("naive", "gg-safe", "all", "all-vision")),
        output,
        split=split,
        max_tokens=max_tokens,
        mode=choice(mode, "mode", ("auto", "layer", "vision", "off")),
        dtype=choice(dtype, "dtype", ("auto", "float32", "bfloat16")),
        shard=shard,
        device=device,
    )


@app.command()
def recipe(
    content: Annotated[str, typer.Option(help="The recipe as JSON.")], output: Output
) -> None:
    """Check a training recipe and write it for `train --recipe` (JSON)."""
    import json

    from gapinit.artifacts.artifacts import write_json
    from gapinit.config.recipe import Recipe
    from gapinit.config.yaml_files import check_settings

    checked = check_settings(json.loads(content), Recipe, "--content")
    write_json(output, checked.model_dump(mode="json", exclude_unset=True))


@app.command()
def train(
    run: Annotated[
        list[str],
        typer.Option(
            help="A run's path, made of its factors; may be repeated for runs with the same "
            "backbone, dataset, layers and gap file."
        ),
    ],
    backbone: Backbone,
    trunk: Annotated[list[Path], typer.Option(help="Trunk of the runs' layers, or its shards.")],
    layers: Annotated[Path, typer.Option(help="Layer choice by `gapinit layers`.")],
    gap: Annotated[Path, typer.Option(help="Gap file, also for the alignment of B.")],
    output: Annotated[
        list[Path], typer.Option(help="A run's folder, written atomically; one per run, in order.")
    ],
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file with keys of a configuration's `training` and `lora`; the "
            "default of each key is the paper's value."
        ),
    ] = None,
    checkpoint_steps: Annotated[
        int | None,
        typer.Option(
            help="Steps between checkpoints, 0: none; overrides the recipe. A killed call resumes "
            "from the last one; affects no number.",
            min=0,
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train runs on the trunk; write each run's adapter folder, step log and run.json."""
    from gapinit.config.recipe import Recipe
    from gapinit.config.runs import Run
    from gapinit.config.yaml_files import read_settings

    chosen = [Run.parse(path) for path in run]
    checked = Recipe() if recipe is None else read_settings(recipe, Recipe)
    if checkpoint_steps is not None:
        checked = checked.model_copy(update={"checkpoint_steps": checkpoint_steps})
    device = device_name(device)
    from gapinit.train.train import train_runs

    train_runs(chosen, backbone, trunk, layers, gap, output, recipe=checked, device=device)
