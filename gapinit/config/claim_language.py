"""Claims as expressions over the tidy table of runs, in a language of one sentence.

    CIDEr(gap-init, r=1) >= CIDEr(lora-gaussian, r=8) - 2
    sd(CIDEr(gap-init)) < sd(CIDEr(lora-rank1))

A side is a metric of a row's runs: their mean, or with `sd` its standard deviation over seeds. The
row is named by its id in the experiment, or by its method and as many factors as tell it apart.
`>=` and `>` (`<=` and `<`) are tested alike, by an interval; a margin, in the metric's units, is
written behind the right side. Parsed by hand, never evaluated: a claim can only name numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gapinit.config.runs import TableRow

ABBREVIATIONS = {"r": "rank", "size": "calibration_size"}
SELECTING = (
    "backbone",
    "rank",
    "layers",
    "epochs",
    "calibration",
    "calibration_size",
    "noise",
    "noise_scale",
)
"""Factors that a claim may name beside the method."""
_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_TERM = r"\s*(?P<metric>[A-Za-z][A-Za-z0-9_]*)\s*\((?P<inside>[^()]*)\)\s*"
_MARGIN = re.compile(r"\s*(?:(?P<sign>[+-])\s*(?P<margin>\d+(?:\.\d+)?))?\s*")


@dataclass(frozen=True)
class Side:
    """One side of a claim: a metric, the row it is of, and the factors that the row must have."""

    metric: str
    row: str
    factors: tuple[tuple[str, str], ...] = ()
    statistic: str = "mean"
    """`mean`, or `std`: the standard deviation over seeds."""

    def __str__(self) -> str:
        """Return the side as it is written."""
        inside = ", ".join([self.row, *(f"{key}={value}" for key, value in self.factors)])
        text = f"{self.metric}({inside})"
        return f"sd({text})" if self.statistic == "std" else text

    def find(self, rows: Sequence[TableRow]) -> TableRow:
        """Return the one row that this side speaks of.

        Raises ValueError that says which rows there are, or how those found differ.
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
    """A claim that one side is above the other, by no less than minus the margin.

    Of standard deviations the smaller one is better, so that `better` is the side that is praised.
    """

    better: Side
    worse: Side
    margin: float = 0.0

    @property
    def metric(self) -> str:
        """Return the metric, one for both sides."""
        return self.better.metric

    @property
    def statistic(self) -> str:
        """Return what of the metric is compared: `mean` or `std`."""
        return self.better.statistic


def parse_claim(text: str) -> Statement:
    """Return a claim's two sides; ValueError that shows what was read and what was expected."""
    sides = re.split(r"(>=|<=|(?<![<>])[<>](?!=))", text)
    if len(sides) != 3:
        raise ValueError(
            f"'{text}': expected one comparison (>=, >, <= or <) of two sides, as in "
            "CIDEr(gap-init, r=1) >= CIDEr(lora-gaussian, r=8) - 2"
        )
    left, rest = _side(sides[0], text)
    if rest.strip():
        raise ValueError(f"'{text}': did not understand '{rest.strip()}' before '{sides[1]}'")
    right, rest = _side(sides[2], text)
    found = _MARGIN.fullmatch(rest)
    if found is None:
        raise ValueError(
            f"'{text}': did not understand '{rest.strip()}' at the end, expected nothing or a "
            "margin such as - 2"
        )
    margin = float(found["margin"] or 0) * (-1 if found["sign"] == "-" else 1)
    if (left.metric, left.statistic) != (right.metric, right.statistic):
        raise ValueError(f"'{text}': the two sides are of different metrics or statistics")
    if left.statistic == "std" and margin:
        raise ValueError(f"'{text}': standard deviations are compared as a ratio, without a margin")
    above = sides[1].startswith(">")
    if left.statistic == "std":
        return Statement(right, left) if above else Statement(left, right)
    # left >= right + m and right >= left - m.
    return Statement(left, right, -margin) if above else Statement(right, left, margin)


def _side(text: str, whole: str) -> tuple[Side, str]:
    """Read one side from the front of a text; return it and what is left."""
    outer = re.match(r"\s*sd\s*\(", text)
    inner = text[outer.end() :] if outer else text
    found = re.match(_TERM, inner)
    if found is None:
        raise ValueError(
            f"'{whole}': did not understand '{text.strip()}', expected METRIC(row) or "
            "METRIC(method, factor=value), or one of them within sd(...)"
        )
    rest = inner[found.end() :]
    if outer:
        if not rest.startswith(")"):
            raise ValueError(f"'{whole}': sd( is not closed")
        rest = rest[1:]
    name, *factors = (part.strip() for part in found["inside"].split(","))
    if not re.fullmatch(_WORD, name):
        raise ValueError(f"'{whole}': '{name}' is not the name of a row or method")
    pairs = tuple(_factor(factor, whole) for factor in factors)
    return Side(found["metric"], name, pairs, "std" if outer else "mean"), rest


def _factor(text: str, whole: str) -> tuple[str, str]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or ABBREVIATIONS.get(key, key) not in SELECTING or not re.fullmatch(_WORD, value):
        known = ", ".join([*ABBREVIATIONS, *SELECTING])
        raise ValueError(f"'{whole}': '{text}' is no factor=value, known factors: {known}")
    return key, value


def _has(row: TableRow, key: str, value: str) -> bool:
    factor = getattr(row.runs[0], ABBREVIATIONS.get(key, key))
    if isinstance(factor, int | float):
        return value.replace(".", "", 1).isdigit() and float(value) == factor
    return value == str(factor)


def _factors(row: TableRow) -> str:
    run = row.runs[0]
    found = {"method": run.method} | {key: getattr(run, key) for key in SELECTING}
    return ", ".join(f"{key}={value}" for key, value in found.items() if value not in (None, ""))
