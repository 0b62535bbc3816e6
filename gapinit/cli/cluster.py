"""What a cluster needs beside the workflow: cancel, scaling."""

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


@app.command()
def scaling(
    configfile: Annotated[Path, typer.Option(help="Configuration, on top of config/default.yaml.")],
    output: Annotated[Path, typer.Option(help="Markdown page to write.")],
    gpus: Annotated[list[int] | None, typer.Option(help="Numbers of GPUs.", min=1)] = None,
) -> None:
    """Reckon jobs, bytes, GPU-hours and wall time of a configuration on several GPUs."""
    from gapinit.artifacts.artifacts import atomic_file
    from gapinit.cli.rehearse import config_folder
    from gapinit.workflow.doctor import planned
    from gapinit.workflow.doctor.scaling import scaling_page

    page = scaling_page(planned(config_folder(None), configfile), configfile, gpus or (1, 8, 64))
    with atomic_file(output, recorded=False) as temporary:
        temporary.write_text(page, encoding="utf-8")
