"""Options and checks that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gapinit.errors import GapinitError

Output = Annotated[Path, typer.Option(help="Output file or folder, written atomically.")]
Backbone = Annotated[Path, typer.Option(help="save_pretrained folder of the backbone.")]
Manifest = Annotated[Path, typer.Option(help="manifest.json of `gapinit data prepare`.")]
Split = Annotated[str, typer.Option(help="Split of the dataset.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:0, ... or auto: a GPU if there is one.")]

Shard = Annotated[
    str | None,
    typer.Option(help="I/N: write shard I of N; later stages read all N files."),
]


def choice(value: str, name: str, known: tuple[str, ...]) -> Any:
    """Return `value` if it is in `known`; raise GapinitError that names the option otherwise."""
    if value not in known:
        raise GapinitError(
            f"--{name}: unknown value '{value}', expected one of: {', '.join(known)}"
        )
    return value


def same_number(name: str, given: Sequence[object], wanted: int, of: str) -> None:
    """Raise GapinitError unless an option is given as often as expected."""
    if len(given) != wanted:
        raise GapinitError(
            f"--{name}: given {len(given)} times, expected {wanted}: one for each {of}"
        )


def one_line(path: Path) -> str:
    """Return a path as one printable line; other characters are escaped."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(path))


def device_name(name: str) -> str:
    """Return the device to use; `auto` claims a free GPU if there is one (`gapinit.devices`).

    Call it before a stage is imported, since CUDA must not have started.
    """
    if name == "cpu":
        return name
    import torch

    if name != "auto":
        return existing_device(name)
    from gapinit.devices import claim_gpu

    claimed = claim_gpu() if torch.version.cuda is not None else None
    if torch.cuda.is_available():
        return "cuda"
    if claimed is not None:
        claimed.release()  # a driver that this PyTorch cannot use
    return "cpu"


def existing_device(name: str) -> str:
    """Return a device's name; raise GapinitError if PyTorch cannot use the device."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise GapinitError(
            f"--device: unknown device '{name}', expected cpu, cuda, cuda:N or auto"
        ) from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise GapinitError(
            f"--device {name}: PyTorch {torch.__version__} sees {count or 'no'} GPUs here. Use "
            "--device cpu"
        )
    return name
