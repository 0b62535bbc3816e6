"""What a cluster needs beside the workflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look after the workflow's jobs on a cluster.")


@app.command()
def cancel(
    folder: Annotated[
        Path, typer.Option(help="Where Snakemake was called.", exists=True, file_okay=False)
    ] = Path("."),
) -> None:
    """Cancel the Slurm jobs that a killed Snakemake left, and unlock its folder."""
    from gapinit.workflow.cluster import cancel_leftover_jobs

    jobs = cancel_leftover_jobs(folder)
    names = f": {' '.join(jobs)}" if jobs else ""
    print(f"{len(jobs)} jobs cancelled{names}. The folder is unlocked; call Snakemake again.")
