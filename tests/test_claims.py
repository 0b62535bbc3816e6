"""Verdicts on claims, from score files with known means and spreads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gapinit.tables.statistics import std_ratio_interval

from .score_world import MEANS, OFFSETS, World, claim, make_world


def filled(folder: Path, claims: list[dict[str, Any]]) -> World:
    """Return a world in which everything was scored."""
    made = make_world(folder, claims=claims)
    made.fill(MEANS)
    return made


def test_claims_have_three_verdicts(tmp_path: Path) -> None:
    expected = [
        (claim("gap", "lora"), "holds"),
        (claim("lora", "gap"), "does not hold"),
        (claim("gap", "random-b"), "undecided"),
        (claim("gap", "lora", metric="Bleu_4"), "holds"),
        (claim("random-b", "gap", margin=5), "holds"),
        (claim("lora", "gap", margin=5), "does not hold"),
    ]
    lines = filled(tmp_path, [stated for stated, _ in expected]).claims()
    assert [line["verdict"] for line in lines] == [verdict for _, verdict in expected]
    assert float(lines[0]["difference"]) == pytest.approx(10)
    assert float(lines[0]["low"]) < 10 < float(lines[0]["high"])
    assert lines[0]["n"] == "3 seeds, 60 images"
    assert lines[0]["interval_over"] == "seeds and images"
    assert lines[3]["interval_over"] == "seeds"


def test_a_claim_about_stability_is_tested_on_the_ratio(tmp_path: Path) -> None:
    pairs = [("gap", "lora"), ("lora", "gap"), ("random-b", "lora"), ("zero-shot", "lora")]
    claims = [claim(*pair, statistic="std") for pair in pairs]
    world = filled(tmp_path, claims)
    spread = {"gap": 0.01, "lora": 5.0, "random-b": 4.0}
    for row, size in spread.items():
        for run in world.rows[row]:
            assert run.seed is not None
            world.score(row, run, MEANS[row] + size * OFFSETS[run.seed])
    lines = world.claims()
    verdicts = [line["verdict"] for line in lines]
    assert verdicts == ["holds", "does not hold", "undecided", "undecided"]
    assert float(lines[0]["difference"]) == pytest.approx(0.01 / 5)
    expected = std_ratio_interval([-0.01, 0, 0.01], [-5, 0, 5])
    assert expected is not None
    assert float(lines[0]["high"]) == pytest.approx(expected[1].high)
    assert lines[3]["difference"] == lines[3]["low"] == ""
    assert float(lines[0]["better_value"]) == pytest.approx(0.01)
    assert float(lines[0]["worse_value"]) == pytest.approx(5)
    assert lines[3]["better_value"] == ""


def test_a_verdict_stands_with_its_expression_and_both_numbers(tmp_path: Path) -> None:
    stated = claim("gap", "lora-gaussian, r=1", margin=2) | {"question": "Is it the gap?"}
    world = filled(tmp_path, [stated])
    (line,) = world.claims()
    assert line["claim"] == "CIDEr(gap) >= CIDEr(lora-gaussian, r=1) - 2"
    assert (line["better"], line["worse"], line["question"]) == ("gap", "lora", "Is it the gap?")
    assert float(line["better_value"]) == pytest.approx(130)
    assert float(line["worse_value"]) == pytest.approx(120)
    text = world.output.with_name("claims.md").read_text(encoding="utf-8")
    assert "130.00 against 120.00, 10.00" in text and "**holds**" in text
    assert f"`{line['claim']}`" in text
    assert {row.count("|") for row in text.splitlines()} == {8}


def test_no_claims_is_a_legal_answer(tmp_path: Path) -> None:
    assert filled(tmp_path, []).claims() == []
