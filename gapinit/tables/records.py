"""Read the result files of stage 6 back as typed records: tables, claims, runs.

Figures and the report read the very CSV files that a user reads, so no number can differ between
them. Plain `csv`, no pandas: a report starts in a fraction of a second.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TypeVar

from gapinit.artifacts.digests import require_unaltered
from gapinit.config.runs import Run
from gapinit.errors import GapinitError

Record = TypeVar("Record")


@dataclass(frozen=True)
class Interval:
    """A closed interval of values, in the units of the metric."""

    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """One cell of a table: a row, a metric, the published number and ours."""

    table: str
    row: str
    label: str
    metric: str
    published: float | None
    published_std: float | None
    measured: float
    std: float | None
    n_seeds: int
    interval: Interval | None
    interval_over: str
    difference: float | None
    """Measured minus published."""
    vs_reference: float | None
    """This row minus the reference row, on the same images and seeds; None for that row."""
    vs_reference_interval: Interval | None
    p_value: float | None
    p_holm: float | None
    runs: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class ClaimResult:
    """A statement of the paper, and what the numbers say about it."""

    table: str
    text: str
    claim: str
    """The same as an expression over the rows."""
    question: str
    """What it helps to answer; empty if it stands for itself."""
    metric: str
    statistic: str
    """`mean`, or `std`: then `difference` is the ratio of the two standard deviations."""
    better: str
    worse: str
    margin: float | None
    better_value: float | None
    worse_value: float | None
    difference: float | None
    interval: Interval | None
    verdict: str
    n: str


@dataclass(frozen=True)
class RunResult:
    """One line of the tidy table of runs: a run, a dataset it was evaluated on, a metric."""

    run: Run
    dataset: str
    metric: str
    value: float
    tables: tuple[str, ...]
    trainable_parameters: int | None
    first_grad_norm: float | None
    final_loss: float | None
    noise_cosine: float | None


class Line:
    """One line of a CSV file, whose entries are read with their type or refused by name."""

    def __init__(self, path: Path, number: int, entries: Mapping[str, str | None]) -> None:
        """Remember where the line stands, so that every complaint can say it."""
        self._path, self._number, self._entries = path, number, entries

    def text(self, column: str) -> str:
        """Return an entry as it stands, without surrounding white space."""
        return (self._entries[column] or "").strip()

    def number(self, column: str) -> float | None:
        """Return a finite number, or None where the entry is empty or `nan`."""
        text = self.text(column)
        if text.lower() in ("", "nan", "none"):
            return None
        try:
            value = float(text)
        except ValueError:
            raise self._wrong(column, "a number") from None
        if not isfinite(value):
            raise self._wrong(column, "a finite number")
        return value

    def required(self, column: str) -> float:
        """Return a number that must be there."""
        value = self.number(column)
        if value is None:
            raise self._wrong(column, "a number")
        return value

    def integer(self, column: str) -> int | None:
        """Return a whole number, or None where the entry is empty."""
        value = self.number(column)
        if value is not None and value != int(value):
            raise self._wrong(column, "a whole number")
        return None if value is None else int(value)

    def interval(self, low: str, high: str) -> Interval | None:
        """Return the interval of two columns, or None unless both hold a number."""
        ends = self.number(low), self.number(high)
        return None if ends[0] is None or ends[1] is None else Interval(ends[0], ends[1])

    def parts(self, column: str) -> tuple[str, ...]:
        """Return the entries of a list joined by semicolons."""
        return tuple(part.strip() for part in self.text(column).split(";") if part.strip())

    def run(self, column: str) -> Run:
        """Return the run whose path an entry is."""
        return self._run(column, self.text(column))

    def runs(self, column: str) -> tuple[str, ...]:
        """Return a list of paths of runs, each checked."""
        return tuple(self._run(column, path).path for path in self.parts(column))

    def _run(self, column: str, path: str) -> Run:
        try:
            return Run.parse(path)
        except GapinitError:
            raise self._wrong(column, "the path of a run") from None

    def _wrong(self, column: str, expected: str) -> GapinitError:
        return GapinitError(
            f"{self._path}: line {self._number}, column '{column}': expected {expected}, "
            f"found '{self.text(column)}'. Make the tables again."
        )


MEASUREMENT_COLUMNS = [
    "table",
    "row",
    "label",
    "metric",
    "published",
    "published_std",
    "measured",
    "std",
    "n_seeds",
    "interval_low",
    "interval_high",
    "interval_over",
    "difference",
    "vs_reference",
    "vs_reference_low",
    "vs_reference_high",
    "p_value",
    "p_holm",
    "runs",
    "note",
]
CLAIM_COLUMNS = [
    "table",
    "text",
    "claim",
    "question",
    "metric",
    "statistic",
    "better",
    "worse",
    "margin",
    "better_value",
    "worse_value",
    "difference",
    "low",
    "high",
    "verdict",
    "n",
]
RUN_COLUMNS = [
    "run",
    "evaluated",
    "metric",
    "value",
    "tables",
    "trainable_parameters",
    "first_grad_norm",
    "final_loss",
    "noise_cosine",
]


def read_table(path: Path) -> list[Measurement]:
    """Read one table, `6_tables/<table>.csv`; a table without a line is an error."""
    measurements = _read(path, MEASUREMENT_COLUMNS, _measurement)
    if not measurements:
        raise GapinitError(f"{path}: expected at least one row, found none. Make the table again.")
    return measurements


def read_claims(path: Path) -> list[ClaimResult]:
    """Read `claims.csv`; no claims at all is a legal answer."""
    return _read(path, CLAIM_COLUMNS, _claim)


def read_runs(path: Path) -> list[RunResult]:
    """Read the tidy table of runs, `6_tables/runs.csv`."""
    return _read(path, RUN_COLUMNS, _run)


def _measurement(line: Line) -> Measurement:
    return Measurement(
        table=line.text("table"),
        row=line.text("row"),
        label=line.text("label"),
        metric=line.text("metric"),
        published=line.number("published"),
        published_std=line.number("published_std"),
        measured=line.required("measured"),
        std=line.number("std"),
        n_seeds=int(line.required("n_seeds")),
        interval=line.interval("interval_low", "interval_high"),
        interval_over=line.text("interval_over"),
        difference=line.number("difference"),
        vs_reference=line.number("vs_reference"),
        vs_reference_interval=line.interval("vs_reference_low", "vs_reference_high"),
        p_value=line.number("p_value"),
        p_holm=line.number("p_holm"),
        runs=line.runs("runs"),
        note=line.text("note"),
    )


def _claim(line: Line) -> ClaimResult:
    return ClaimResult(
        table=line.text("table"),
        text=line.text("text"),
        claim=line.text("claim"),
        question=line.text("question"),
        metric=line.text("metric"),
        statistic=line.text("statistic"),
        better=line.text("better"),
        worse=line.text("worse"),
        margin=line.number("margin"),
        better_value=line.number("better_value"),
        worse_value=line.number("worse_value"),
        difference=line.number("difference"),
        interval=line.interval("low", "high"),
        verdict=line.text("verdict"),
        n=line.text("n"),
    )


def _run(line: Line) -> RunResult:
    return RunResult(
        run=line.run("run"),
        dataset=line.text("evaluated"),
        metric=line.text("metric"),
        value=line.required("value"),
        tables=line.parts("tables"),
        trainable_parameters=line.integer("trainable_parameters"),
        first_grad_norm=line.number("first_grad_norm"),
        final_loss=line.number("final_loss"),
        noise_cosine=line.number("noise_cosine"),
    )


def _read(path: Path, columns: Sequence[str], parse: Callable[[Line], Record]) -> list[Record]:
    """Parse each line of a CSV file whose header must hold `columns`; others are ignored."""
    path = Path(path)
    try:
        require_unaltered(path)
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise GapinitError(
                    f"{path}: expected the columns {', '.join(columns)}; not found: "
                    f"{', '.join(missing)}. Make the tables again."
                )
            return [parse(Line(path, reader.line_num, entries)) for entries in reader]
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such file. Make the tables first.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise GapinitError(f"{path}: not a readable CSV file ({error})") from None
