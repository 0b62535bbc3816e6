"""`gapinit data`: make, read and check datasets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gapinit.cli.options import Output

Downloads = Annotated[Path, typer.Option(help="Table of downloads, config/downloads.yaml.")]
DownloadName = Annotated[str, typer.Option(help="Entry of the table.")]

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


@app.command("retrieve")
def data_retrieve(
    downloads: Downloads,
    name: DownloadName,
    output: Output,
    mirror: Annotated[str | None, typer.Option(help="Base URL of a mirror of all files.")] = None,
) -> None:
    """Download one file of a real dataset, or resume its download, and verify its SHA-256."""
    from gapinit.data.retrieve import retrieve

    retrieve(name, downloads, output, mirror=mirror)


@app.command("unpack")
def data_unpack(
    downloads: Downloads,
    name: DownloadName,
    root: Annotated[Path, typer.Option(help="Data folder.")],
    output: Output,
    archive: Annotated[
        Path | None, typer.Option(help="File by `gapinit data retrieve`; none: manual download.")
    ] = None,
) -> None:
    """Unpack or copy a downloaded file into the data folder; write a list of its content."""
    from gapinit.data.unpack import unpack

    unpack(name, downloads, root, output, archive=archive)


@app.command("check")
def data_check(
    target: Annotated[
        Path,
        typer.Argument(
            help="Dataset folder, annotation file, dataset file or configuration.",
            show_default=False,
        ),
    ],
) -> None:
    """List every defect of a dataset, or of all datasets of a configuration, by file and entry."""
    from gapinit.data.check_target import check_target

    checked = check_target(target)
    for note in checked.notes:
        print(f"note: {note}", file=sys.stderr)
    summary = checked.summary()
    for line in map(str, checked.defects or summary):
        # File names may contain bytes that are not text.
        print(line.encode("utf-8", "backslashreplace").decode())
    count = len(checked.defects)
    none = "no defects" if summary else "nothing to check yet"
    print(f"{count} defect{'s' * (count > 1)}" if count else none)
    if count:
        raise typer.Exit(1)
