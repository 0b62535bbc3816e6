"""Arrange results as the report shows them: what stands in which section, in which order.

Nothing here computes a statistic: every number is one of the CSV files', and the template only
prints it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, Field

from gapinit.artifacts.artifacts import read_json
from gapinit.config.experiments import METRICS, Experiment
from gapinit.config.yaml_files import check_settings
from gapinit.errors import GapinitError
from gapinit.tables.formats import NAMES
from gapinit.tables.records import ClaimResult, Measurement, Verdict, few_seeds
from gapinit.tables.statistics import Interval

HEADLINE_METRIC = "CIDEr"
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Axis:
    """A horizontal axis shared by the strips of a table: values onto 0 ... 100."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return the place of a value on the axis, in percent of its length."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True)
class MetricTable:
    """The rows of one table for one metric."""

    metric: str
    name: str
    rows: tuple[Measurement, ...]
    axis: Axis
    interval_over: str
    notes: tuple[tuple[str, str], ...]
    """Row label and what is to be known about its published number."""
    has_published: bool
    in_percent: bool
    """Scores are; what is measured in training has units of its own."""
    references: tuple[str, ...]
    """Ids of the rows that the others are compared with."""


@dataclass(frozen=True)
class Table:
    """One table of the paper as measured here."""

    id: str
    title: str
    place: str
    note: str
    metrics: tuple[MetricTable, ...]
    few_seeds: str
    """What so few seeds cannot show, in words."""


@dataclass(frozen=True)
class Claim:
    """A claim with the labels of the rows that it compares."""

    result: ClaimResult
    place: str
    better: str
    worse: str


class LayerChoice(BaseModel):
    """The layers that each strategy adapts, and the scores that GG-Safe chose by."""

    naive: tuple[int, ...]
    gg_safe: tuple[int, ...] = Field(alias="gg-safe")
    score: tuple[float, ...]
    exclude_bottom: int

    @property
    def strategies(self) -> dict[str, tuple[int, ...]]:
        """The strategies that choose, by name."""
        return {"naive": self.naive, "gg-safe": self.gg_safe}


def arrange_table(measurements: Sequence[Measurement], experiment: Experiment) -> Table:
    """Group one table's lines by metric, CIDEr first, else in the order of the file."""
    metrics = list(dict.fromkeys(line.metric for line in measurements))
    metrics.sort(key=lambda metric: metric != HEADLINE_METRIC)
    return Table(
        id=measurements[0].table,
        title=experiment.title,
        place=experiment.place,
        note=experiment.note.strip(),
        metrics=tuple(
            _metric_table(metric, [line for line in measurements if line.metric == metric])
            for metric in metrics
        ),
        few_seeds=few_seeds(measurements),
    )


def arrange_claims(results: Sequence[ClaimResult], tables: Sequence[Table]) -> list[Claim]:
    """Put the claims in order of verdict and name their rows by label."""
    labels = {
        (table.id, row.row): row.label
        for table in tables
        for metric in table.metrics
        for row in metric.rows
    }
    places = {table.id: table.place for table in tables}
    for result in results:
        if result.table not in places:
            raise GapinitError(
                f"claims: a claim speaks of '{result.table}', expected one of the tables given: "
                f"{', '.join(places)}"
            )
    claims = [
        Claim(
            result=result,
            place=places[result.table],
            better=labels.get((result.table, result.better), result.better),
            worse=labels.get((result.table, result.worse), result.worse),
        )
        for result in results
    ]
    return sorted(claims, key=lambda claim: VERDICTS.index(claim.result.verdict))


def arrange_questions(claims: Sequence[Claim]) -> dict[str, list[Claim]]:
    """Group the claims that answer one question together."""
    found: dict[str, list[Claim]] = {}
    for claim in claims:
        if claim.result.question:
            found.setdefault(claim.result.question, []).append(claim)
    return found


def answer_text(claims: Sequence[Claim]) -> str:
    """Answer a question by the verdicts of its claims: yes, no, partly, or not decided."""
    counts = count_verdicts(claims)
    decided = counts["holds"] + counts["does not hold"]
    total = len(claims)
    if not decided:
        return f"Not decided here: the interval of none of the {total} comparisons excludes zero."
    if not counts["does not hold"]:
        return f"Yes, as far as decided: {counts['holds']} of {total} comparisons hold."
    if not counts["holds"]:
        return f"No, as far as decided: {counts['does not hold']} of {total} comparisons fail."
    return (
        f"Partly: of {total} comparisons {counts['holds']} hold and {counts['does not hold']} fail."
    )


def count_verdicts(claims: Sequence[Claim]) -> dict[str, int]:
    """Return how many claims hold, do not hold and are undecided."""
    counts = Counter(claim.result.verdict for claim in claims)
    return {verdict: counts[verdict] for verdict in VERDICTS}


def read_layers(path: Path) -> LayerChoice:
    """Return the layer choice as stage 3 wrote it."""
    return check_settings(read_json(path), LayerChoice, str(path))


def metric_name(metric: str) -> str:
    """Return a metric's usual spelling in print."""
    return NAMES.get(metric, metric)


def _metric_table(metric: str, rows: Sequence[Measurement]) -> MetricTable:
    over = dict.fromkeys(row.interval_over for row in rows if row.interval_over)
    return MetricTable(
        metric=metric,
        name=metric_name(metric),
        rows=tuple(rows),
        axis=_axis(rows),
        interval_over="; ".join(over),
        notes=tuple((row.label, row.note) for row in rows if row.note),
        has_published=any(row.published is not None for row in rows),
        in_percent=not METRICS[metric].of_training,
        references=_references(rows),
    )


def _references(rows: Sequence[Measurement]) -> tuple[str, ...]:
    """Return the rows without a comparison, if the others have one."""
    without = tuple(row.row for row in rows if row.vs_reference is None)
    return without if len(without) < len(rows) else ()


def _axis(rows: Sequence[Measurement]) -> Axis:
    """Span every number drawn, with a margin, so that no mark is cut."""
    values = [row.measured for row in rows]
    values += [row.published for row in rows if row.published is not None]
    for row in rows:
        if row.interval is not None:
            values += [row.interval.low, row.interval.high]
    margin = 0.04 * (max(values) - min(values)) or 1.0
    return Axis(min(values) - margin, max(values) + margin)


def interval_text(interval: Interval | None, digits: int = 2) -> str:
    """Return an interval as text, with a real minus sign."""
    if interval is None:
        return ""
    return f"{number_text(interval.low, digits)} … {number_text(interval.high, digits)}"


def number_text(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """Return a number with a fixed count of decimals and a real minus sign; None is empty."""
    if value is None:
        return ""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", "−")


def p_text(value: float | None) -> str:
    """Return a p value as it is printed in papers."""
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
