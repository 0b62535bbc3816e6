"""`gapinit data`: make, read and check datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gapinit.cli.options import Output

app = typer.Typer(no_args_is_help=True, help="Make, read and check datasets.")


@app.command("prepare")
def data_prepare(
    dataset: Annotated[Path, typer.Option(help="Dataset file, config/datasets/*.yaml.")],
    output: Output,
    data_root: Annotated[Path | None, typer.Option(help="Folder of a local dataset.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Its annotation file or folder, if not <root>/annotations.")
    ] = None,
) -> None:
    """Generate or read a dataset, check all of it and write its manifest."""
    from gapinit.data.dataset import prepare_dataset

    prepare_dataset(dataset, output, data_root=data_root, annotations=annotations)
