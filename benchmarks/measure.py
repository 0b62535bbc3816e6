"""Shared code of the benchmarks: alternate, repeat, compare, and write one JSON file.

The speed of a machine drifts by more than the measured differences. So gapinit and the peer take
turns in one process, each turn gives one ratio, and the median and quartiles of the ratios are
reported. The limits of the machine (matrix products, reading a file) are measured between turns.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from gapinit.artifacts.artifacts import package_versions, write_json

RESULTS = Path(__file__).parent / "results"
Bound = Literal["at least", "at most"]


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one quantity."""

    values: list[float]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("nothing was measured")

    @property
    def median(self) -> float:
        """Return the middle value."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Return the first and the third quartile; of fewer than two values, the value itself."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def as_json(self) -> dict[str, Any]:
        """Return the summary and the values."""
        low, high = self.quartiles
        return {
            "median": self.median,
            "min": min(self.values),
            "quartile_1": low,
            "quartile_3": high,
            "n": len(self.values),
            "values": self.values,
        }


@dataclass(frozen=True)
class Target:
    """One row of the table of targets: what was measured beside what was asked for."""

    work: str
    peer: str
    measured: Spread
    bound: Bound
    target: float
    unit: str = "×"
    """`×`: a ratio; `%`: a share, kept as a number below 1; `s`: seconds."""
    scale: str = ""
    """On what it was measured, where that is not the real thing."""

    @property
    def met(self) -> bool:
        """Return whether the median keeps the bound."""
        if self.bound == "at least":
            return self.measured.median >= self.target
        return self.measured.median <= self.target

    def as_json(self) -> dict[str, Any]:
        """Return the row for the result file."""
        row = {name: value for name, value in asdict(self).items() if name != "measured"}
        return row | {"measured": self.measured.as_json(), "met": self.met}


@dataclass
class Result:
    """What a program found; `write` makes `results/<name>.json` of it."""

    name: str
    targets: list[Target]
    measured: dict[str, Spread | float | int | str] = field(default_factory=dict)
    """Everything else that was measured, by what it is (with its unit)."""
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the file's content."""
        return {
            "name": self.name,
            "targets": [target.as_json() for target in self.targets],
            "measured": {
                name: value.as_json() if isinstance(value, Spread) else value
                for name, value in self.measured.items()
            },
            "settings": self.settings,
            "notes": self.notes,
            "environment": environment(),
        }

    def write(self, folder: Path = RESULTS) -> Path:
        """Write the JSON file, whole or not at all, and print its rows."""
        path = folder / f"{self.name}.json"
        write_json(path, self.as_json(), recorded=False)
        for target in self.targets:
            print(told(target))
        for name, value in self.measured.items():
            shown = value.median if isinstance(value, Spread) else value
            print(f"  {name}: {shown:.4g}" if isinstance(shown, float) else f"  {name}: {shown}")
        for note in self.notes:
            print(f"  {note}")
        return path


def told(target: Target) -> str:
    """Return one row as a line of text."""
    low, high = (number(value, target.unit) for value in target.measured.quartiles)
    verdict = "met" if target.met else "NOT met"
    return (
        f"{target.work}: {number(target.measured.median, target.unit)} ({low} to {high}, "
        f"{len(target.measured.values)} turns); {target.bound} "
        f"{number(target.target, target.unit)}: {verdict}"
    )


def number(value: float, unit: str) -> str:
    """Return a number with its unit as text."""
    if unit == "%":
        return f"{100 * value:.0f} %"
    return f"{value:.2f} {unit}" if value < 20 else f"{value:.1f} {unit}"


def alternate(
    ours: Callable[[], float], peer: Callable[[], float], turns: int, warmups: int = 1
) -> tuple[list[float], list[float]]:
    """Call both in turns and return the measurements of each, turn by turn.

    Every second turn starts with the peer, so that neither side is always second.
    """
    for _ in range(warmups):
        ours()
        peer()
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns):
        first = turn % 2
        for which in (first, 1 - first):
            found[which].append((ours, peer)[which]())
    return found


def ratios(ours: Sequence[float], peer: Sequence[float]) -> Spread:
    """Return the peer's time over ours, turn by turn."""
    return Spread([theirs / own for own, theirs in zip(ours, peer, strict=True)])


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the processor time of a call in this process and its finished children."""
    before = os.times()
    work()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def matrix_rate(shapes: Sequence[tuple[int, int, int]], device: str = "cpu") -> float:
    """Return the machine's rate for a list of matrix products, in operations per second.

    A shape is (rows, d_in, d_out) of `x @ W.T`; the list may repeat it. The rate is the number of
    all operations over the sum of the times, each the best of five measurements.
    """
    import torch

    generator = torch.Generator(device).manual_seed(0)
    best: dict[tuple[int, int, int], float] = {}
    for shape in dict.fromkeys(shapes):
        rows, d_in, d_out = shape
        x = torch.randn(rows, d_in, generator=generator, device=device)
        weight = torch.randn(d_out, d_in, generator=generator, device=device)

        def product(x: Any = x, weight: Any = weight) -> None:
            torch.nn.functional.linear(x, weight)
            if device.startswith("cuda"):
                torch.cuda.synchronize()

        product()
        best[shape] = min(seconds(product) for _ in range(5))
    work = sum(2.0 * rows * d_in * d_out for rows, d_in, d_out in shapes)
    return work / sum(best[shape] for shape in shapes)


def read_rate(path: Path, block: int = 1 << 24) -> float:
    """Return the rate of reading a whole file in bytes per second."""
    size = path.stat().st_size

    def read() -> None:
        with open(path, "rb", buffering=0) as file:
            while file.read(block):
                pass

    return size / seconds(read)


def environment() -> dict[str, Any]:
    """Return machine, load, packages and allocator settings."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_at_the_end": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": package_versions(),
        "allocator": {
            name: os.environ[name]
            for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
            if name in os.environ
        },
    }
    return found


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
