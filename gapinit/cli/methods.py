"""What methods there are, where they come from, what they need and where they apply."""

from __future__ import annotations

import typer

app = typer.Typer()


@app.command()
def methods() -> None:
    """List every method: its source, what it needs and where it applies."""
    from gapinit.config.methods import METHODS
    from gapinit.progress import print_table

    rows = [(it.name, it.source, it.needs, it.applies) for it in METHODS.values()]
    print_table("", ("method", "source", "needs", "applies"), rows)
