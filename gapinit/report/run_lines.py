"""What the report says of a single run: factors, command, log, curve, adapter, scores."""

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
from gapinit.tables.measures import (
    ProcessRecord,
    RunRecord,
    read_process,
    read_run_record,
)
from gapinit.tables.records import RunResult
from gapinit.train.step_log import read_steps

CURVE_POINTS = 60
"""A curve is drawn through the means of so many stretches of a run."""


@dataclass(frozen=True)
class Curve:
    """A training curve on a field of 100 by 30, and the numbers at its ends."""

    points: str
    """`x,y x,y ...` for an SVG polyline, y downwards."""
    steps: int
    first: float
    last: float


@dataclass(frozen=True)
class Place:
    """A file or folder as text, and a relative link to it where it lies beside the report."""

    text: str
    link: str | None


@dataclass(frozen=True)
class RunLine:
    """One run with its scores on every dataset it was evaluated on."""

    run: Run
    label: str
    calibration: str
    tables: tuple[str, ...]
    scores: Mapping[str, float]
    every_score: tuple[RunResult, ...]
    result: RunResult
    """One of them, for what all say of the run itself."""
    record: RunRecord
    process: ProcessRecord
    factors: Mapping[str, str]
    command: str
    loss: Curve | None
    log: Place | None
    adapter: Place | None
    inputs: Mapping[str, str]
    """Digests of what the run was made from, as it recorded them."""


def arrange_runs(
    results: Sequence[RunResult],
    folder: Path,
    metric: str,
    backbone: str,
    beside: Path | None = None,
) -> tuple[list[RunLine], dict[str, str]]:
    """Return one line a run, and the package versions that the runs recorded.

    Runs of other backbones than `backbone` are labelled with theirs. Reads
    `<folder>/<run.path>/run.json` and `steps.csv` of every trained run; a missing one is an error.
    `beside` is the folder of a page that may link to files; None: it links to nothing.
    """
    grouped: dict[Run, list[RunResult]] = {}
    for result in results:
        grouped.setdefault(result.run, []).append(result)
    lines: list[RunLine] = []
    versions: dict[str, dict[str, None]] = {}
    for run, group in grouped.items():
        record = read_run_record(folder, run, "the report (its line is in runs.csv)")
        for package, version in record.versions.items():
            versions.setdefault(package, {})[version] = None
        label = METHODS[run.method].label
        if run.backbone != backbone:
            label += f" on {run.backbone}"
        lines.append(_run_line(label, run, group, record, metric, folder, beside))
    # Several versions of one package among the runs are worth seeing, so all of them are named.
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
    label: str,
    run: Run,
    group: Sequence[RunResult],
    record: RunRecord,
    metric: str,
    folder: Path,
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
    return RunLine(
        run=run,
        label=label,
        calibration=calibration,
        tables=tuple(dict.fromkeys(table for result in group for table in result.tables)),
        # Questions have their accuracy in the place of a caption metric.
        scores={
            result.evaluated: result.value
            for result in group
            if result.metric in (metric, "accuracy")
        },
        every_score=tuple(group),
        result=group[0],
        record=record,
        process=process,
        factors={
            name.replace("_", " "): f"{value:g}" if isinstance(value, float) else str(value)
            for name, value in run.factors.items()
            if value is not None
        },
        command=shlex.join(["gapinit", *command]) if command else "",
        loss=read_curve(folder / run.path / "steps.csv") if run.trained else None,
        log=_place(Path(log), beside) if log else None,
        adapter=_place(folder / run.path / "adapter", beside) if run.trained else None,
        inputs={name: value for name, value in record.inputs.items() if isinstance(value, str)},
    )


def _place(path: Path, beside: Path | None) -> Place:
    """Name a path, and link to it if the page may and it is there."""
    link = None
    if beside is not None and path.exists():
        relative = Path(os.path.relpath(path, beside)).as_posix()
        link = quote(relative) + ("/" if path.is_dir() else "")
    return Place(path.as_posix(), link)
