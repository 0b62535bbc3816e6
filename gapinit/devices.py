"""One GPU a process on a machine that several processes share, by file locks.

Snakemake starts as many jobs as cores allow and never sets `CUDA_VISIBLE_DEVICES`, so every job
would take the first card. Here a job claims a free card before CUDA starts and waits if none is
free. A claim is an operating-system lock on a file (filelock), so that the death of its holder,
by whatever signal, frees the card. No torch: on a machine without a GPU nothing is locked or read.

Devices are those of `CUDA_VISIBLE_DEVICES` if a scheduler has set it, else what nvidia-smi lists.
A card's lock bears its UUID, since its number may be another one in every container or job.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from gapinit.errors import GapinitError

FOLDER_VARIABLE = "GAPINIT_GPU_LOCKS"
PER_GPU_VARIABLE = "GAPINIT_JOBS_PER_GPU"
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 0.5
MESSAGE_SECONDS = 60.0
_LISTED = re.compile(r"^\s*(GPU (?P<index>\d+):|MIG ).*\(UUID: (?P<uuid>[^)]+)\)")


@dataclass(frozen=True)
class Device:
    """A GPU, or a part of one (MIG), that CUDA can be pointed at."""

    name: str
    """As `CUDA_VISIBLE_DEVICES` names it: a number or a UUID."""
    key: str
    """What its locks are called: the UUID, where it is known."""


@dataclass
class Claim:
    """Devices that this process holds until it ends or calls `release`."""

    devices: list[Device]
    locks: list[FileLock] = field(repr=False)

    def release(self) -> None:
        """Free the devices for others."""
        for lock in self.locks:
            lock.release()


@dataclass(frozen=True)
class Holder:
    """What a process that holds a device says of itself; without it the strictest is assumed."""

    pid: int | None = None
    per_gpu: int = 1
    since: str = ""
    job: str = ""
    command: str = ""

    def __str__(self) -> str:
        if self.pid is None:
            return "an unknown process"
        job = f" of Slurm job {self.job}" if self.job else ""
        text = self.command if len(self.command) <= 70 else f"{self.command[:67]}..."
        return f"process {self.pid}{job} since {self.since}" + (f" ({text})" if text else "")


_taken: list[Claim] = []
"""What this process holds until it ends: a lock that is collected as garbage is released."""


def take_gpus(count: int = 1) -> Claim:
    """Claim GPUs for this process until it ends, and point CUDA at them.

    To be called before CUDA starts: it reads `CUDA_VISIBLE_DEVICES` once.
    """
    taken = claim(visible_devices(), count=count, per_gpu=jobs_per_gpu())
    _taken.append(taken)
    os.environ[VISIBLE] = ",".join(device.name for device in taken.devices)
    return taken


def has_nvidia() -> bool:
    """Return whether this machine has NVIDIA's driver: a look at /dev, no program is started."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def visible_devices(listed: str | None = None) -> list[Device]:
    """Return the devices that this process may use; `listed` is what `nvidia-smi -L` prints.

    As in CUDA, the first name that is no device ends `CUDA_VISIBLE_DEVICES`, so "-1" and "" hide
    all. A number on a card that is split (MIG) is its first part.
    """
    cards = _cards(_nvidia_smi() if listed is None else listed)
    chosen = os.environ.get(VISIBLE)
    if chosen is None and cards:
        # By UUID: CUDA numbers cards from the fastest, nvidia-smi in the order of the bus.
        found = [uuid for parts in cards.values() for uuid in parts[1:] or parts]
        return [Device(uuid, uuid) for uuid in found]
    if chosen is None:
        numbers = sorted(int(path.name[6:]) for path in Path("/dev").glob("nvidia[0-9]*"))
        chosen = ",".join(map(str, numbers))
    devices: dict[str, Device] = {}
    for name in map(str.strip, chosen.split(",")):
        if name.isdecimal():
            parts = cards.get(str(int(name)))
            if cards and parts is None:
                break
            key = (parts[1] if len(parts) > 1 else parts[0]) if parts else _private(name)
        elif name.startswith(("GPU-", "MIG-")):
            # CUDA takes any beginning that is one card's alone.
            known = [uuid for parts in cards.values() for uuid in parts if uuid.startswith(name)]
            key = known[0] if len(known) == 1 else name
        else:
            break
        devices.setdefault(key, Device(name, key))
    return list(devices.values())


def _cards(listed: str) -> dict[str, list[str]]:
    """Return of each card's number its UUID and those of its MIG parts."""
    cards: dict[str, list[str]] = {}
    for line in listed.splitlines():
        if (found := _LISTED.match(line)) is None:
            continue
        if found["index"] is not None:
            cards[found["index"]] = []
        if cards:
            list(cards.values())[-1].append(found["uuid"])
    return cards


@cache
def _nvidia_smi() -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _private(number: str) -> str:
    """Return the lock name of a card without a known UUID.

    Two jobs of a scheduler may both call their card 0 and mean different ones; the scheduler keeps
    them apart, so such a number only counts within a job.
    """
    job = os.environ.get("SLURM_JOB_ID")
    return f"job{job}-{number}" if job else number


def lock_folder() -> Path:
    """Return this user's folder of lock files on this machine; make it if need be.

    ASSUME: below /tmp and not $XDG_RUNTIME_DIR or $TMPDIR, which differ from session to session
    and may be emptied while a job still runs.
    """
    given = os.environ.get(FOLDER_VARIABLE)
    base = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    folder = Path(given) if given else base / f"gapinit-gpus-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=bool(given), exist_ok=True)
        own = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
    except OSError as error:
        raise GapinitError(f"{folder}: cannot be made ({error}): set {FOLDER_VARIABLE}") from None
    if not own:
        raise GapinitError(
            f"{folder}: belongs to another user or is a link. It is where GPUs are claimed: name "
            f"a folder of your own in {FOLDER_VARIABLE}"
        )
    return folder


def jobs_per_gpu() -> int:
    """Return how many processes may share a GPU: `GAPINIT_JOBS_PER_GPU`, or 1."""
    text = os.environ.get(PER_GPU_VARIABLE, "1")
    if not text.isdecimal() or int(text) < 1:
        raise GapinitError(f"{PER_GPU_VARIABLE}={text}: expected a whole number above 0")
    return int(text)


def claim(
    devices: Sequence[Device],
    *,
    count: int = 1,
    per_gpu: int = 1,
    folder: Path | None = None,
    poll: float = POLL_SECONDS,
) -> Claim:
    """Claim `count` of `devices`, all at once, those with the fewest holders; wait until it can.

    A device never has more than `per_gpu` holders, nor more than any of its holders said. Says
    on standard error who is waited for. Raises GapinitError if there are fewer than `count`.
    """
    if len(devices) < count:
        raise GapinitError(
            f"{count} GPUs are asked for, and {len(devices)} are there"
            + (f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else "")
        )
    folder = lock_folder() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    mutex = FileLock(folder / "pool.lock")
    asked = last = time.monotonic()
    shown = False
    while True:
        try:
            with mutex.acquire(timeout=MESSAGE_SECONDS, poll_interval=0.02):
                taken, holders = _try_claim(devices, count, per_gpu, folder)
        except Timeout:
            taken, holders = None, [f"another process stands still with {mutex.lock_file} locked"]
        now = time.monotonic()
        if taken is not None:
            if shown:
                print(f"Got a GPU after {now - asked:.0f} s", file=sys.stderr, flush=True)
            return taken
        if not shown or now - last >= MESSAGE_SECONDS:
            shown, last = True, now
            number = "a free GPU" if count == 1 else f"{count} free GPUs"
            print(f"Waiting for {number}: {'; '.join(holders)}", file=sys.stderr, flush=True)
        # Not all at the same moment.
        time.sleep(poll * random.uniform(0.5, 1.5))


def _try_claim(
    devices: Sequence[Device], count: int, per_gpu: int, folder: Path
) -> tuple[Claim | None, list[str]]:
    """Take the freest devices, or nothing and who holds them. The pool's mutex is held."""
    free: list[tuple[int, Device, FileLock, Path]] = []
    told: list[str] = []
    for device in devices:
        stem = re.sub(r"[^A-Za-z0-9._-]", "-", device.key)
        # Others may have made more slots than this process allows.
        slots = {path.with_suffix("") for path in folder.glob(f"{stem}.*.lock")}
        slots |= {folder / f"{stem}.{number}" for number in range(per_gpu)}
        held: list[Holder] = []
        own: tuple[FileLock, Path] | None = None
        for slot in sorted(slots):
            lock = FileLock(f"{slot}.lock")
            holder = Path(f"{slot}.json")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                held.append(_read_holder(holder))
                continue
            if own is None:
                own = lock, holder
            else:
                lock.release()
        limit = min([per_gpu, *(one.per_gpu for one in held)])
        if own is not None and len(held) < limit:
            free.append((len(held), device, *own))
            continue
        if own is not None:
            own[0].release()
        told.append(f"{device.name} held by {', '.join(map(str, held))}")
    free.sort(key=lambda one: one[0])
    chosen = free[:count] if len(free) >= count else []
    for _, _, lock, _ in free[len(chosen) :]:
        lock.release()
    if not chosen:
        return None, told
    for _, _, _, holder in chosen:
        holder.write_text(json.dumps(asdict(_this_process(per_gpu))), encoding="utf-8")
    return Claim([device for _, device, _, _ in chosen], [lock for _, _, lock, _ in chosen]), told


def _this_process(per_gpu: int) -> Holder:
    return Holder(
        pid=os.getpid(),
        per_gpu=per_gpu,
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        job=os.environ.get("SLURM_JOB_ID", ""),
        command=" ".join(sys.argv[1:])[:200],
    )


def _read_holder(path: Path) -> Holder:
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Holder()
