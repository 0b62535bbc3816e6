"""What the report shows of a single run: factors, command, log, curve, adapter, scores."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from gapinit.artifacts.artifacts import package_versions
from gapinit.config.methods import METHODS
from gapinit.config.runs import Run
from gapinit.tables.measures import ProcessRecord, RunRecord, read_process, read_run_record
from gapinit.tables.records import RunResult
from gapinit.train.step_log import read_steps

CURVE_POINTS = 60
"""A curve connects the means of this many segments of a run."""


@dataclass(frozen=True)
class Curve:
    """A training curve on a field of 100 by 30, and the numbers at its ends."""

    points: str
    """`x,y x,y ...` for an SVG polyline, y downwards."""
    steps: int
    first: float
    last: float


Place = tuple[str, str | None]
"""The path of a file or folder, and a relative link to it if the page may link to files."""


@dataclass(frozen=True)
class RunLine:
    """One run with its scores on every dataset on which it was evaluated."""

    run: Run
    label: str
    calibration: str
    tables: tuple[str, ...]
    scores: Mapping[str, float]
    """By dataset: the metric that the page shows, or the accuracy on questions."""
    results: Sequence[RunResult]
    record: RunRecord
    process: ProcessRecord
    command: str
    loss: Curve | None
    log: Place | None
    adapter: Place | None


def arrange_runs(
    results: Sequence[RunResult],
    folder: Path,
    metric: str,
    backbone: str,
    beside: Path | None = None,
) -> tuple[list[RunLine], dict[str, str]]:
    """Return one line a run, and the package versions that the runs recorded.

    The label of a run names its backbone if that is not `backbone`. Reads `run.json` and
    `steps.csv` in `<folder>/<run.path>` of every trained run; a missing one is an error.
    `beside` is the folder of a page that may link to files; None: the page links to none.
    """
    grouped: dict[Run, list[RunResult]] = {}
    for result in results:
        grouped.setdefault(result.run, []).append(result)
    lines = [
        _run_line(run, group, metric, folder, backbone, beside) for run, group in grouped.items()
    ]
    versions: dict[str, dict[str, None]] = {}
    for line in lines:
        for package, version in line.record.versions.items():
            versions.setdefault(package, {})[version] = None
    # Runs may have been trained with several versions of a package: the page names all of them.
    recorded = {package: ", ".join(found) for package, found in sorted(versions.items())}
    return lines, recorded or package_versions()


def read_curve(path: Path) -> Curve:
    """Read the loss of a step log as a curve of at most `CURVE_POINTS` points."""
    values = read_steps(path)["loss"].tolist()
    count = min(CURVE_POINTS, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False) if b > a]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    width = max(1, len(means) - 1)
    points = " ".join(
        f"{100 * i / width:.1f},{1 + 28 * (high - mean) / span:.1f}" for i, mean in enumerate(means)
    )
    return Curve(points, len(values), values[0], values[-1])


def _run_line(
    run: Run,
    results: Sequence[RunResult],
    metric: str,
    folder: Path,
    backbone: str,
    beside: Path | None,
) -> RunLine:
    calibration = ""
    if run.calibration is not None:
        calibration = f"{run.calibration}, {run.calibration_size} pairs"
        if run.noise:
            calibration += f", noise {run.noise:g} ({run.noise_scale})"
    process = read_process(folder, run)
    command = process.command
    log = command[command.index("--log-file") + 1] if "--log-file" in command[:-1] else None
    on = f" on {run.backbone}" if run.backbone != backbone else ""
    return RunLine(
        run=run,
        label=METHODS[run.method].label + on,
        calibration=calibration,
        tables=tuple(dict.fromkeys(table for result in results for table in result.tables)),
        scores={it.evaluated: it.value for it in results if it.metric in (metric, "accuracy")},
        results=results,
        record=read_run_record(folder, run, "the report (its line is in runs.csv)"),
        process=process,
        command=shlex.join(["gapinit", *command]) if command else "",
        loss=read_curve(folder / run.path / "steps.csv") if run.trained else None,
        log=_place(Path(log), beside) if log else None,
        adapter=_place(folder / run.path / "adapter", beside) if run.trained else None,
    )


def _place(path: Path, beside: Path | None) -> Place:
    if beside is None or not path.exists():
        return path.as_posix(), None
    link = quote(Path(os.path.relpath(path, beside)).as_posix())
    return path.as_posix(), link + ("/" if path.is_dir() else "")
