"""Arrange results for the report: which section shows what, in which order.

Nothing here computes a statistic: the template prints the numbers of the CSV files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from gapinit.config.experiments import METRICS, Experiment
from gapinit.tables.formats import NAMES
from gapinit.tables.records import ClaimResult, Measurement, Verdict, few_seeds
from gapinit.tables.statistics import Interval

HEADLINE_METRIC = "CIDEr"
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Axis:
    """A horizontal axis that the strips of a table share: it maps values to 0 ... 100."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return the position of a value on the axis, in percent of its length."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True)
class MetricTable:
    """The rows of one table for one metric."""

    metric: str
    rows: tuple[Measurement, ...]
    axis: Axis
    interval_over: str
    has_published: bool
    in_percent: bool
    """Scores are in percent; what is measured in training has units of its own."""
    references: tuple[str, ...]
    """Ids of the rows with which the others are compared."""


@dataclass(frozen=True)
class Table:
    """One table of the paper as measured here."""

    id: str
    title: str
    place: str
    note: str
    metrics: tuple[MetricTable, ...]
    few_seeds: str
    """What so few seeds cannot show, as a sentence."""


@dataclass(frozen=True)
class Claim:
    """A claim with its table's place in the paper and the labels of its two rows."""

    result: ClaimResult
    place: str
    better: str
    worse: str


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
    """Give each claim the place of its table and the labels of its rows."""
    places = {table.id: table.place for table in tables}
    labels = {
        (table.id, row.row): row.label
        for table in tables
        for metric in table.metrics
        for row in metric.rows
    }
    return [
        Claim(
            result=result,
            place=places[result.table],
            better=labels[result.table, result.better],
            worse=labels[result.table, result.worse],
        )
        for result in results
    ]


def arrange_questions(claims: Sequence[Claim]) -> dict[str, list[Claim]]:
    """Group the claims that answer one question together."""
    found: dict[str, list[Claim]] = {}
    for claim in claims:
        if claim.result.question:
            found.setdefault(claim.result.question, []).append(claim)
    return found


def answer_text(claims: Sequence[Claim]) -> str:
    """Answer a question from the verdicts of its claims: yes, no, partly, or not decided."""
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


def metric_name(metric: str) -> str:
    """Return the printed name of a metric."""
    return NAMES.get(metric, metric)


def _metric_table(metric: str, rows: Sequence[Measurement]) -> MetricTable:
    over = dict.fromkeys(row.interval_over for row in rows if row.interval_over)
    without = tuple(row.row for row in rows if row.vs_reference is None)
    return MetricTable(
        metric=metric,
        rows=tuple(rows),
        axis=_axis(rows),
        interval_over="; ".join(over),
        has_published=any(row.published is not None for row in rows),
        in_percent=not METRICS[metric].of_training,
        references=without if len(without) < len(rows) else (),
    )


def _axis(rows: Sequence[Measurement]) -> Axis:
    """Return an axis that spans every number drawn, with a margin so that no mark is cut."""
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
