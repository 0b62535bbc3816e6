"""What a rehearsal measures of a stage: seconds, memory, throughput; and whether it can start."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gapinit.errors import GapinitError
from gapinit.progress import print_table, show_bytes


@dataclass
class Stage:
    """One stage's measurements."""

    name: str
    count: int
    unit: str
    seconds: float = 0.0
    peak_bytes: int = 0
    """GPU: the most that was allocated during the stage; CPU: the process's peak so far."""


class Meter:
    """Measures stages on a device, one after another."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._device = device
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str, count: int, unit: str) -> Iterator[Stage]:
        """Measure the block; `count` is what it does, in `unit`, unless it corrects that."""
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        print(f"{name} ...", file=sys.stderr, flush=True)
        measured = Stage(name, count, unit)
        started = time.perf_counter()
        yield measured
        if self._cuda:
            torch.cuda.synchronize(self._device)
        measured.seconds, measured.peak_bytes = time.perf_counter() - started, self._peak()
        self.stages.append(measured)

    def _peak(self) -> int:
        if self._cuda:
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def print_stages(record: dict[str, Any]) -> None:
    """Print a rehearsal's stages as a table."""
    rows = [
        (
            stage["name"],
            f"{stage['seconds']:.2f}",
            show_bytes(stage["peak_bytes"]),
            f"{stage['count'] / stage['seconds']:,.1f} {stage['unit']}/s",
        )
        for stage in record["stages"]
    ]
    title = f"{record['backbone']} ({record['dtype']}, random weights) on {record['device']}"
    print_table(title, ("stage", "seconds", "peak memory", "throughput"), rows)
    loss = record["loss"]
    print(f"\nloss {loss[0]:.3f} to {loss[-1]:.3f} in {len(loss)} steps (means nothing)")
    print(f"memory estimated beforehand: {show_bytes(record['needed_bytes_estimated'])}")


def require_memory(needed: int, device: str, name: str) -> None:
    """Raise GapinitError if the estimate is above what the device has free."""
    free = free_memory(device)
    if free is not None and needed > free:
        raise GapinitError(
            f"{name}: about {show_bytes(needed)} needed, {show_bytes(free)} free on {device}. "
            "Lower --batch-size, or take --device meta for shapes alone"
        )


def free_memory(device: str) -> int | None:
    """Return the bytes that are free on a device; None: it does not say."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    table = Path("/proc/meminfo")
    lines = table.read_text(encoding="ascii").splitlines() if table.is_file() else []
    free = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(free[0]) * 1024 if free else None


def device_label(device: str) -> str:
    """Return a device's own name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
