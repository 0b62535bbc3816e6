"""`gapinit methods`: list the methods."""

from __future__ import annotations

import typer

app = typer.Typer()


@app.command()
def methods() -> None:
    """List every method with its source, the data it needs and its limits."""
    from gapinit.config.methods import METHODS
    from gapinit.progress import print_table

    rows = [(it.name, it.source, it.needs, it.applies) for it in METHODS.values()]
    print_table("", ("method", "source", "needs", "applies"), rows)
