"""One GPU a process on a machine that several processes share, by file locks.

Snakemake starts as many jobs as cores allow and never sets `CUDA_VISIBLE_DEVICES`, so every job
would take the first GPU. Here a process claims a free GPU before CUDA starts, and waits if none is
free. A claim is a lock of the operating system on a file (filelock): the death of its holder, by
whatever signal, frees the GPU. No torch; on a machine without a GPU nothing is locked or run.

The devices are those of `CUDA_VISIBLE_DEVICES` if a scheduler has set it, else all that nvidia-smi
lists. A lock is named by the GPU's UUID, since its number may differ between containers or jobs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gapinit.errors import GapinitError

FOLDER_VARIABLE = "GAPINIT_GPU_LOCKS"
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 0.5
DEV = Path("/dev")

_held: list[FileLock] = []
"""Locks that this process holds until it ends: filelock releases one that is garbage-collected."""


def claim_gpu() -> FileLock | None:
    """Claim a free GPU for this process until it ends, and point CUDA at it; None: there is none.

    To be called before CUDA starts, which reads `CUDA_VISIBLE_DEVICES` once. While other processes
    hold all GPUs this waits, and says so on standard error.
    """
    devices = visible_devices()
    if not devices:
        return None
    folder, began, waiting = _lock_folder(), time.monotonic(), False
    while True:
        for name, uuid in devices.items():
            lock = FileLock(folder / f"{re.sub('[^A-Za-z0-9._-]', '-', uuid)}.lock")
            with suppress(Timeout):
                lock.acquire(timeout=0)
                os.environ[VISIBLE] = name
                _held.append(lock)
                if waiting:
                    print(f"Got a GPU after {time.monotonic() - began:.0f} s", file=sys.stderr)
                return lock
        if not waiting:
            waiting = True
            print(
                f"Waiting for a free GPU: other processes hold {', '.join(devices)} (locks in "
                f"{folder})",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(POLL_SECONDS)


def visible_devices() -> dict[str, str]:
    """Return the GPUs that this process may use: what CUDA calls each, and its UUID if known.

    As in CUDA, the first name that is no device ends `CUDA_VISIBLE_DEVICES`: "-1" and "" hide all.
    """
    numbers = sorted(path.name.removeprefix("nvidia") for path in DEV.glob("nvidia[0-9]*"))
    if not numbers:
        return {}
    listed = _nvidia_smi() or {number: number for number in numbers}
    chosen = os.environ.get(VISIBLE)
    if chosen is None:
        # By UUID: CUDA numbers GPUs from the fastest, nvidia-smi in the order of the bus.
        return {uuid: uuid for uuid in listed.values()}
    devices: dict[str, str] = {}
    for name in map(str.strip, chosen.split(",")):
        known = name if name.startswith(("GPU-", "MIG-")) else listed.get(name)
        if known is None:
            break
        devices[name] = known
    return devices


def _nvidia_smi() -> dict[str, str]:
    """Return the UUID of each GPU by its number, as far as nvidia-smi is there."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(re.findall(r"^GPU (\d+): .*\(UUID: ([^)]+)\)", done.stdout, re.MULTILINE))


def _lock_folder() -> Path:
    """Return this user's folder of lock files on this machine; make it if need be.

    ASSUME: below /tmp and not $XDG_RUNTIME_DIR or $TMPDIR, which differ from session to session
    and may be emptied while a job still runs.
    """
    folder = Path(os.environ.get(FOLDER_VARIABLE, f"/tmp/gapinit-gpus-{os.getuid()}"))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
    except OSError as error:
        raise GapinitError(f"{folder}: cannot be made ({error}): set {FOLDER_VARIABLE}") from None
    if not own:
        raise GapinitError(
            f"{folder}: belongs to another user or is a link. GPUs are claimed there: name a "
            f"folder of your own in {FOLDER_VARIABLE}"
        )
    return folder
