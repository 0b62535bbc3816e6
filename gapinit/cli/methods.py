"""What methods there are, where they come from, what they need and where they apply."""

from __future__ import annotations

import sys

import typer

app = typer.Typer()


@app.command()
def methods() -> None:
    """List every method: its source, what it needs and where it applies."""
    from gapinit.config.methods import METHODS

    columns = ("method", "source", "needs", "applies")
    rows: list[tuple[str, ...]] = [
        (it.name, it.source, it.needs, it.applies) for it in METHODS.values()
    ]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    # Into a pipe: columns apart by two spaces at least, without frames, one method a line.
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
