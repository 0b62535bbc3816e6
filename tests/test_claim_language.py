"""The language of claims: what it says, what it refuses, and that it names the right rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapinit.config.claim_language import SELECTING, Side, Statement, parse_claim
from gapinit.config.runs import Run, TableRow


def table_row(id_: str, method: str, **factors: object) -> TableRow:
    base = {"backbone": "b", "dataset": "d", "rank": 1, "layers": "naive", "epochs": 1, "seed": 42}
    return TableRow(id_, id_, None, (Run(method=method, **(base | factors)),))  # type: ignore[arg-type]


ROWS = [
    table_row("lora-rank1", "lora-gaussian"),
    table_row("lora-rank8", "lora-gaussian", rank=8),
    table_row("lora-all", "lora-gaussian", layers="all"),
    table_row("gap-init", "gap-init", calibration="ood", calibration_size=64),
    table_row("noise-0.6-raw", "gap-init", noise=0.6, noise_scale="raw"),
]


def test_the_example_of_the_documentation() -> None:
    found = parse_claim("CIDEr(gap-init, r=1) >= CIDEr(lora-gaussian, r=8) - 2")
    left = Side("CIDEr", "gap-init", (("r", "1"),))
    right = Side("CIDEr", "lora-gaussian", (("r", "8"),))
    assert found == Statement(left, right, 2.0)
    assert found.better.find(ROWS).id == "gap-init" and found.worse.find(ROWS).id == "lora-rank8"


@pytest.mark.parametrize(
    ("text", "better", "worse", "margin"),
    [
        ("CIDEr(a) > CIDEr(b)", "a", "b", 0),
        ("CIDEr(a) < CIDEr(b)", "b", "a", 0),
        ("CIDEr(a)>=CIDEr(b)-1.5", "a", "b", 1.5),
        # At least a point above; b at most two points above a.
        ("CIDEr(a) >= CIDEr(b) + 1", "a", "b", -1),
        ("CIDEr(b) <= CIDEr(a) + 2", "a", "b", 2),
        ("sd(CIDEr(a)) < sd(CIDEr(b))", "a", "b", 0),
        ("sd( CIDEr(b) ) >= sd(CIDEr(a))", "a", "b", 0),
    ],
)
def test_all_ways_to_say_which_side_is_better(
    text: str, better: str, worse: str, margin: float
) -> None:
    found = parse_claim(text)
    assert (found.better.row, found.worse.row, found.margin) == (better, worse, margin)
    assert found.statistic == ("std" if text.startswith("sd") else "mean")


@pytest.mark.parametrize(
    ("side", "row"),
    [
        (Side("CIDEr", "lora-gaussian", (("layers", "all"),)), "lora-all"),
        (Side("CIDEr", "lora-gaussian", (("r", "1"), ("layers", "naive"))), "lora-rank1"),
        (Side("CIDEr", "gap-init", (("size", "64"), ("calibration", "ood"))), "gap-init"),
        (Side("CIDEr", "noise-0.6-raw", (("noise", "0.6"),)), "noise-0.6-raw"),
    ],
)
def test_rows_are_named_by_id_or_by_method_and_factors(side: Side, row: str) -> None:
    assert side.find(ROWS).id == row


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (Side("CIDEr", "lora"), "no row or method 'lora', expected one of: lora-rank1, lora-rank8"),
        (Side("CIDEr", "lora-gaussian"), "3 rows for CIDEr.lora-gaussian., .*lora-rank8 .*rank=8"),
        (Side("CIDEr", "gap-init", (("r", "8"),)), r"no row for CIDEr\(gap-init, r=8\), .*rank=1"),
    ],
)
def test_a_row_that_is_not_there_is_told_with_those_that_are(side: Side, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        side.find(ROWS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CIDEr(a)", "expected METRIC"),
        ("CIDEr(a) > CIDEr(b) > CIDEr(c)", "expected METRIC"),
        ("sd(CIDEr(a) < sd(CIDEr(b))", "expected METRIC"),
        ("CIDEr(a) + 2 > CIDEr(b)", "expected METRIC"),
        ("CIDEr(a) > CIDEr(b) * 2", "expected METRIC"),
        ("CIDEr(a) > 130", "expected METRIC"),
        ("__import__('os').system('true') > CIDEr(b)", "expected METRIC"),
        ("CIDEr(a) > Bleu_4(b)", "different metrics"),
        ("sd(CIDEr(a)) < CIDEr(b)", "different metrics or statistics"),
        ("sd(CIDEr(a)) < sd(CIDEr(b)) - 1", "without a margin"),
        ("CIDEr(a, q=1) > CIDEr(b)", "unknown factor 'q', expected one of: r, size"),
    ],
)
def test_what_is_not_understood_is_told(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_claim(text)


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)
factors = st.lists(st.tuples(st.sampled_from(SELECTING), names), max_size=3).map(tuple)


@given(names, factors, names, st.sampled_from(["mean", "std"]))
def test_a_side_as_written_is_read_back(
    row: str, chosen: tuple[tuple[str, str], ...], other: str, statistic: str
) -> None:
    better, worse = Side("CIDEr", row, chosen, statistic), Side("CIDEr", other, (), statistic)
    sign = "<" if statistic == "std" else ">"
    assert parse_claim(f"{better} {sign} {worse}") == Statement(better, worse)
