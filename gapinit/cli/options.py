"""Options that several commands take, and the checks that they share."""

from __future__ import annotations

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


def one_line(path: Path) -> str:
    """Return a path as one line that any terminal can show, whatever its name holds."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(path))


def device_name(name: str) -> str:
    """Return the device to use; `auto` is a GPU if there is one."""
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
