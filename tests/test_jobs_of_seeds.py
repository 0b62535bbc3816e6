"""Which seeds a training job of the workflow has, and that the set is stable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gapinit.workflow.plan import Plan, make_plan

CONFIG = Path(__file__).parent.parent / "config"


def plan_of(**changes: Any) -> Plan:
    content = yaml.safe_load((CONFIG / "default.yaml").read_text(encoding="utf-8"))
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    return make_plan(content, CONFIG, [])


def jobs(plan: Plan) -> set[tuple[str, tuple[int, ...]]]:
    return {(row, seeds) for seeds, rows in plan.chunks().items() for row in rows}


def test_every_trained_run_is_in_one_job() -> None:
    plan = plan_of()
    made = [f"{row}/seed{seed}" for row, seeds in jobs(plan) for seed in seeds]
    assert sorted(made) == sorted(run.path for run in plan.trained())
    assert set(plan.chunks()) == {(42, 123, 2024), (999, 7), (42,)}


@settings(max_examples=15)
@given(
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=9, unique=True),
    added=st.integers(100, 199),
    size=st.integers(1, 4),
)
def test_only_a_job_that_is_not_full_changes(seeds: list[int], added: int, size: int) -> None:
    few = {"experiments": ["table10"], "figures": ["figure3"], "training": {"seeds_per_job": size}}
    before, after = (jobs(plan_of(**few, seeds=list(it))) for it in (seeds, [*seeds, added]))
    assert all(len(chunk) < size for _, chunk in before - after)
    assert all(added in chunk for _, chunk in after - before)
