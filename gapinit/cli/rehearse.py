"""`gapinit rehearse` and `gapinit doctor`: check a backbone or configuration before a long run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gapinit.cli.options import existing_device
from gapinit.errors import GapinitError

app = typer.Typer()


def config_folder(given: Path | None) -> Path:
    """Return the folder with backbones/; raise GapinitError with the searched folders if none."""
    checkout = Path(__file__).resolve().parents[2] / "config"
    tried = [given] if given is not None else [checkout, Path("config")]
    for folder in tried:
        if (folder / "backbones").is_dir():
            return folder
    places = ", ".join(map(str, tried))
    raise GapinitError(
        f"no config folder (with backbones/ in it) at {places}: set --config-folder to the "
        "checkout's"
    )


@app.command("rehearse")
def rehearse_command(
    backbone: Annotated[str | None, typer.Option(help="File of config/backbones, by name.")] = None,
    architecture: Annotated[
        Path | None, typer.Option(help="Path of an architecture file, instead of --backbone.")
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="cuda, cpu: every stage on random weights; meta: shapes only; auto: a GPU if "
            "there is one, else meta."
        ),
    ] = "auto",
    pairs: Annotated[int, typer.Option(help="Calibration pairs, training images.", min=4)] = 64,
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 20,
    layers: Annotated[int, typer.Option(help="Top layers to adapt.", min=1)] = 6,
    rank: Annotated[int, typer.Option(min=1)] = 1,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
    config_folder_: Annotated[
        Path | None, typer.Option("--config-folder", help="The checkout's config folder.")
    ] = None,
) -> None:
    """Run every stage on a backbone's real shapes with random weights; nothing is downloaded."""
    from gapinit.artifacts.artifacts import write_json
    from gapinit.backbones.architecture import Architecture, find_architecture
    from gapinit.backbones.facts import architecture_facts, backbone_facts
    from gapinit.config.yaml_files import read_settings

    if (backbone is None) == (architecture is None):
        raise GapinitError("give either --backbone NAME or --architecture FILE")
    if architecture is not None:
        chosen, name = read_settings(architecture, Architecture), architecture.stem
        facts = architecture_facts(chosen, str(architecture))
    else:
        assert backbone is not None
        folder, name = config_folder(config_folder_), backbone
        facts = backbone_facts(name, folder)
    if device == "auto":
        device = _gpu_or_meta()
    if layers > facts.num_layers:
        raise GapinitError(f"--layers: {layers} layers, but '{name}' has {facts.num_layers}")
    if device == "meta":
        from gapinit.workflow.doctor.rehearse_shapes import print_shapes, shapes

        adapted = range(facts.num_layers - layers, facts.num_layers)
        found = shapes(facts, name, adapted, pairs, rank)
        print_shapes(found)
    else:
        from gapinit.workflow.doctor.rehearse import Options, print_stages, rehearse

        if architecture is None:
            chosen = find_architecture(name, folder)
        options = Options(existing_device(device), pairs, steps, layers, rank, batch_size)
        found = rehearse(chosen, facts, name, options)
        print_stages(found)
    if output is not None:
        write_json(output, found, recorded=False)


def _gpu_or_meta() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    print("no GPU here: shapes and counts only (--device cpu runs every stage)", file=sys.stderr)
    return "meta"


@app.command("doctor")
def doctor_command(
    configfile: Annotated[
        Path | None, typer.Option(help="Configuration that overrides config/default.yaml.")
    ] = None,
    config: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE that overrides the file; may be repeated.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(help="Speed of the GPU in bfloat16, TFLOP/s.", min=0.001)
    ] = None,
    strict: Annotated[bool, typer.Option(help="Exit with 1 if something is missing.")] = False,
    config_folder_: Annotated[
        Path | None, typer.Option("--config-folder", help="The checkout's config folder.")
    ] = None,
) -> None:
    """Report a configuration's downloads, disk space, duration and missing requirements."""
    from gapinit.workflow.doctor import examine
    from gapinit.workflow.doctor.show import print_diagnosis
    from gapinit.workflow.plan import read_plan

    found = examine(read_plan(config_folder(config_folder_), configfile, config or ()), tflops)
    print_diagnosis(found)
    if strict and found.missing:
        raise typer.Exit(1)
