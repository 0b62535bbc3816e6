"""Which predictions and scores share a job: every file is made by exactly one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

from gapinit.config.yaml_files import read_yaml
from gapinit.workflow.plan import Plan, make_plan
from gapinit.workflow.shared_jobs import EvaluationJobs, evaluation_jobs, scored_together

CONFIG = Path(__file__).parent.parent / "config"


@pytest.fixture(scope="module", params=["default", "demo"])
def plan(request: pytest.FixtureRequest) -> Plan:
    sources = list(dict.fromkeys(CONFIG / f"{name}.yaml" for name in ("default", request.param)))
    content: dict[str, object] = {}
    for source in sources:
        content |= read_yaml(source)
    return make_plan(content, CONFIG, sources)


def scored(plan: Plan) -> set[str]:
    return {path for table in plan.experiments for path in plan.scores(table)}


def made(jobs: list[EvaluationJobs]) -> Counter[str]:
    return Counter(f"{row}/{path}" for one in jobs for row in one.rows for path in one.paths())


def test_every_prediction_is_made_once(plan: Plan) -> None:
    found = made(evaluation_jobs(plan))
    assert set(found) == {path.removesuffix(".scores.json") for path in scored(plan)}
    assert set(found.values()) == {1}
    assert len({one.name for one in evaluation_jobs(plan)}) == len(evaluation_jobs(plan))


def test_every_run_is_scored_by_one_rule(plan: Plan) -> None:
    jobs = scored_together(evaluation_jobs(plan))
    found = [f"{row}/{seed}" for seeds, rows in jobs.items() for row in rows for seed in seeds]
    wanted = {str(PurePosixPath(path).parent) for path in scored(plan)}
    assert set(found) == wanted
    assert len(found) == len(wanted)


def test_seeds_of_a_training_job_share_a_job(plan: Plan) -> None:
    chunks = plan.chunks()
    for one in evaluation_jobs(plan):
        seeds = tuple(int(seed.removeprefix("seed")) for seed in one.seeds if seed != "no-adapter")
        holding = [chunk for chunk in chunks if set(seeds) <= set(chunk)]
        assert holding or not seeds
    assert any(len(one.seeds) > 1 for one in evaluation_jobs(plan))


def test_runs_are_scored_by_all_metrics_of_their_tables(plan: Plan) -> None:
    runs = plan.trained("table2")
    assert plan.scorers(runs, plan.in_domain) == ",".join(
        sorted(set(",".join(plan.scorers([run], plan.in_domain) for run in runs).split(",")))
    )
