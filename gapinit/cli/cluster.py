"""`gapinit cluster`: manage the workflow's jobs on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Manage the workflow's jobs on a cluster.")


@app.command()
def cancel(
    folder: Annotated[
        Path, typer.Option(help="Snakemake's working folder.", exists=True, file_okay=False)
    ] = Path("."),
) -> None:
    """Cancel the remaining Slurm jobs of a killed Snakemake, and unlock its folder."""
    from gapinit.workflow.cluster import cancel_leftover_jobs

    jobs = cancel_leftover_jobs(folder)
    names = f": {' '.join(jobs)}" if jobs else ""
    print(f"{len(jobs)} jobs cancelled{names}. The folder is unlocked; call Snakemake again.")
