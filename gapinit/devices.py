"""One GPU per process on a machine that several processes share, by file locks.

Snakemake starts as many jobs as cores allow and never sets `CUDA_VISIBLE_DEVICES`, so every job
would use the first GPU. Instead, a process claims a free GPU before CUDA starts, and waits while
none is free. A claim is an operating system lock on a file (filelock), which is released whenever
its process ends. No torch; without a GPU this module locks nothing and starts no process.

The devices are those in `CUDA_VISIBLE_DEVICES` if a scheduler has set it, else all that nvidia-smi
lists. A lock file is named by the GPU's UUID: its number may differ between containers or jobs.
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
"""Locks of this process; filelock would release a lock that is garbage-collected."""


def claim_gpu() -> FileLock | None:
    """Claim a free GPU until this process ends, and select it for CUDA; return None without a GPU.

    Call it before CUDA starts, which reads `CUDA_VISIBLE_DEVICES` once. While other processes hold
    all GPUs, it waits and prints a message on standard error.
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
    """Return the GPUs that this process may use: CUDA's name of each, and its UUID if known.

    As in CUDA, names after the first unknown one are ignored: "-1" and "" hide all devices.
    """
    numbers = sorted(path.name.removeprefix("nvidia") for path in DEV.glob("nvidia[0-9]*"))
    if not numbers:
        return {}
    listed = _nvidia_smi() or {number: number for number in numbers}
    chosen = os.environ.get(VISIBLE)
    if chosen is None:
        # By UUID: CUDA numbers GPUs by speed, nvidia-smi by bus position.
        return {uuid: uuid for uuid in listed.values()}
    devices: dict[str, str] = {}
    for name in map(str.strip, chosen.split(",")):
        known = name if name.startswith(("GPU-", "MIG-")) else listed.get(name)
        if known is None:
            break
        devices[name] = known
    return devices


def _nvidia_smi() -> dict[str, str]:
    """Return the UUID of each GPU by its number; nothing without nvidia-smi."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(re.findall(r"^GPU (\d+): .*\(UUID: ([^)]+)\)", done.stdout, re.MULTILINE))


def _lock_folder() -> Path:
    """Return this user's folder of lock files; create it if it does not exist.

    ASSUME: below /tmp, not $XDG_RUNTIME_DIR or $TMPDIR, which differ between sessions and may be
    emptied while a job runs.
    """
    folder = Path(os.environ.get(FOLDER_VARIABLE, f"/tmp/gapinit-gpus-{os.getuid()}"))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
    except OSError as error:
        raise GapinitError(
            f"{folder}: cannot be created ({error}): set {FOLDER_VARIABLE}"
        ) from None
    if not own:
        raise GapinitError(
            f"{folder}: belongs to another user or is a link, but GPU locks are stored there. Set "
            f"{FOLDER_VARIABLE} to a folder of your own"
        )
    return folder
