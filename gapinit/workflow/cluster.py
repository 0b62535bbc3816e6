"""Cancel the Slurm jobs of a killed Snakemake, so that a new call can resume.

If Snakemake dies by `kill -9` or with its node, its Slurm jobs continue. A new call would submit
them again, and two jobs would write the same files. The name of each job is the run id of its
Snakemake call, and Snakemake's log in the workflow's folder contains that id.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from gapinit.errors import GapinitError

_RUN_ID = re.compile(r"SLURM run ID: (\S+)")
WAIT_SECONDS = 120.0


def cancel_leftover_jobs(folder: Path, *, wait: float = WAIT_SECONDS) -> list[str]:
    """Cancel all Slurm jobs of `folder`, wait for their end, unlock it; return the jobs' ids.

    Raises GapinitError if Snakemake still runs in the folder, if it never submitted to Slurm from
    there, or if a job does not end. Jobs of other folders and with other names are not touched.
    """
    records = folder / ".snakemake"
    logs = [path.read_text("utf-8", "replace") for path in (records / "log").glob("*.log")]
    runs = {run for text in logs for run in _RUN_ID.findall(text)}
    if not runs:
        raise GapinitError(
            f"{records}/log: no call of Snakemake with the Slurm profile was made from {folder}. "
            "Name the folder in which Snakemake ran: gapinit cluster cancel --folder FOLDER"
        )
    if alive := _controlling_processes(folder):
        raise GapinitError(
            f"Snakemake still runs in {folder} (process {', '.join(map(str, alive))}). Interrupt "
            "it with Ctrl-C or `kill -INT`; it then cancels its jobs."
        )
    jobs = _queued(runs)
    if jobs:
        _slurm("scancel", *jobs)
    deadline = time.monotonic() + wait
    while left := _queued(runs):
        if time.monotonic() > deadline:
            raise GapinitError(
                f"these jobs were cancelled {wait:.0f} s ago and have not ended: "
                f"{' '.join(left)}. Nothing is unlocked. Check `squeue` and call again."
            )
        time.sleep(0.5)
    # Same effect as `snakemake --unlock`, which would read the workflow and its configuration.
    shutil.rmtree(records / "locks", ignore_errors=True)
    return jobs


def _controlling_processes(folder: Path) -> list[int]:
    """Return the Snakemake processes in a folder of this machine that are not Slurm jobs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid != os.getuid() or not folder.samefile(process / "cwd"):
                continue
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # the process has ended
        if any(os.path.basename(one) == b"snakemake" for one in arguments[:3]) and not any(
            one.startswith(b"SLURM_JOB_ID=") for one in environment
        ):
            found.append(int(process.name))
    return found


def _queued(runs: set[str]) -> list[str]:
    """Return the ids of jobs with these names that have not ended."""
    states = "PENDING,CONFIGURING,RUNNING,COMPLETING,SUSPENDED,STOPPED"
    user = f"--user={os.getuid()}"
    listed = _slurm("squeue", "--noheader", user, f"--states={states}", "--format=%A %j")
    pairs = (line.split(None, 1) for line in listed.splitlines() if line.strip())
    return [number for number, name in pairs if name.strip() in runs]


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError:
        raise GapinitError(
            f"'{command[0]}' is not on PATH: run this command on a machine that submits jobs"
        ) from None
    except subprocess.TimeoutExpired:
        raise GapinitError(
            f"`{command[0]}` does not answer: does Slurm's controller run?"
        ) from None
    if done.returncode:
        raise GapinitError(f"`{command[0]}` failed: {done.stderr.strip()}")
    return done.stdout
