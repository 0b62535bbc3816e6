"""A small language for claims, which compare two rows of a table.

    CIDEr(gap-init, r=1) >= CIDEr(lora-gaussian, r=8) - 2
    sd(CIDEr(gap-init)) < sd(CIDEr(lora-rank1))

A side is the mean of a metric over a row's runs or, with `sd`, its standard deviation over seeds.
A row is selected by its id in the experiment, or by its method and enough factors. `>=` and `>`
are tested alike, by an interval, as are `<=` and `<`. A margin, in the metric's units, follows
the right side. A claim is parsed and never evaluated as code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gapinit.config.runs import FACTORS, TableRow

ABBREVIATIONS = {"r": "rank", "size": "calibration_size"}
SELECTING = tuple(factor for factor in FACTORS if factor != "method")
"""Factors that may follow the method in a claim."""
_TERM = r"([A-Za-z]\w*)\s*\(([^()]*)\)"
_SIDE = rf"\s*(?:sd\s*\(\s*{_TERM}\s*\)|{_TERM})\s*"
_CLAIM = re.compile(rf"{_SIDE}(>=|<=|>|<){_SIDE}(?:([+-])\s*(\d+(?:\.\d+)?)\s*)?", flags=re.ASCII)


@dataclass(frozen=True)
class Side:
    """One side of a claim: a metric, a row or method, and factors that select the row."""

    metric: str
    row: str
    factors: tuple[tuple[str, str], ...] = ()
    statistic: str = "mean"
    """`mean`, or `std`: the standard deviation over seeds."""

    def __str__(self) -> str:
        """Return the text of the side."""
        inside = ", ".join([self.row, *(f"{key}={value}" for key, value in self.factors)])
        text = f"{self.metric}({inside})"
        return f"sd({text})" if self.statistic == "std" else text

    def find(self, rows: Sequence[TableRow]) -> TableRow:
        """Return the row that this side selects.

        Raises ValueError, with the known rows, if it selects none or several.
        """
        named = [row for row in rows if row.id == self.row]
        named = named or [row for row in rows if row.runs[0].method == self.row]
        if not named:
            known = dict.fromkeys([*(row.id for row in rows), *(r.runs[0].method for r in rows)])
            raise ValueError(f"no row or method '{self.row}', expected one of: {', '.join(known)}")
        found = [row for row in named if all(_has(row, *factor) for factor in self.factors)]
        if len(found) == 1:
            return found[0]
        described = "; ".join(f"{row.id} ({_factors(row)})" for row in named)
        count = "no row" if not found else f"{len(found)} rows"
        raise ValueError(f"{count} for {self}, expected one of: {described}")


@dataclass(frozen=True)
class Statement:
    """A claim that one side is better than the other, by at least minus the margin.

    A smaller standard deviation is better.
    """

    better: Side
    worse: Side
    margin: float = 0.0

    @property
    def metric(self) -> str:
        """Return the metric of both sides."""
        return self.better.metric

    @property
    def statistic(self) -> str:
        """Return the statistic to compare: `mean` or `std`."""
        return self.better.statistic


def parse_claim(text: str) -> Statement:
    """Parse a claim; raise ValueError with its text and the expected form."""
    found = _CLAIM.fullmatch(text)
    if found is None:
        raise ValueError(
            f"'{text}': expected METRIC(row) or METRIC(method, factor=value), both or neither "
            "within sd(...), on both sides of >=, >, <= or <, as in CIDEr(gap-init, r=1) >= "
            "CIDEr(lora-gaussian, r=8) - 2"
        )
    *terms, sign, number = found.groups()
    left, comparison, right = _side(terms[:4], text), terms[4], _side(terms[5:], text)
    margin = float(f"{sign or ''}{number or 0}")
    if (left.metric, left.statistic) != (right.metric, right.statistic):
        raise ValueError(f"'{text}': the two sides have different metrics or statistics")
    above = comparison.startswith(">")
    if left.statistic == "std":
        if margin:
            raise ValueError(
                f"'{text}': standard deviations are compared as a ratio, without a margin"
            )
        return Statement(right, left) if above else Statement(left, right)
    # left >= right + m, or left <= right + m, that is right >= left - m.
    return Statement(left, right, -margin) if above else Statement(right, left, margin)


def _side(term: Sequence[str | None], text: str) -> Side:
    """Return one side of a claim from the groups of the regular expression."""
    within_sd, metric = term[0] is not None, term[0] or term[2] or ""
    row, *factors = (part.strip() for part in (term[1] or term[3] or "").split(","))
    pairs = []
    for factor in factors:
        key, _, value = (part.strip() for part in factor.partition("="))
        if ABBREVIATIONS.get(key, key) not in SELECTING:
            known = ", ".join([*ABBREVIATIONS, *SELECTING])
            raise ValueError(f"'{text}': unknown factor '{key}', expected one of: {known}")
        pairs.append((key, value))
    return Side(metric, row, tuple(pairs), "std" if within_sd else "mean")


def _has(row: TableRow, key: str, value: str) -> bool:
    factor = getattr(row.runs[0], ABBREVIATIONS.get(key, key))
    if isinstance(factor, int | float):
        return value.replace(".", "", 1).isdigit() and float(value) == factor
    return value == str(factor)


def _factors(row: TableRow) -> str:
    run = row.runs[0]
    found = {"method": run.method} | {key: getattr(run, key) for key in SELECTING}
    return ", ".join(f"{key}={value}" for key, value in found.items() if value not in (None, ""))
