"""Options that several commands take, and the checks that they share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gapinit.errors import GapinitError

Output = Annotated[Path, typer.Option(help="What is written, whole or not at all.")]
Backbone = Annotated[Path, typer.Option(help="save_pretrained folder of the backbone.")]
Manifest = Annotated[Path, typer.Option(help="manifest.json of `gapinit data prepare`.")]
Split = Annotated[str, typer.Option(help="Split of the dataset.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:0, ... or auto: a GPU if there is one.")]


def choice(value: str, name: str, known: tuple[str, ...]) -> Any:
    """Return `value` if it is one of the `known` ones; else an error that names the option."""
    if value not in known:
        raise GapinitError(
            f"--{name}: unknown value '{value}', expected one of: {', '.join(known)}"
        )
    return value


def device_name(name: str) -> str:
    """Return the device to use; `auto` claims a free GPU if there is one (`gapinit.gpu_pool`).

    To be called before a stage is imported: CUDA must not have started.
    """
    if name != "auto":
        return name
    import torch

    from gapinit.gpu_pool import has_nvidia, take_gpus, visible_devices

    if not has_nvidia() or torch.version.cuda is None or not visible_devices():
        return "cuda" if torch.cuda.is_available() else "cpu"
    taken = take_gpus()
    if torch.cuda.is_available():
        return "cuda"
    taken.release()  # a driver that this PyTorch cannot use
    return "cpu"


def without_options(arguments: Sequence[str], *names: str) -> list[str]:
    """Return a command line without some of its options and their values."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in names:
            skip = True
        elif argument.partition("=")[0] not in names:
            kept.append(argument)
    return kept
