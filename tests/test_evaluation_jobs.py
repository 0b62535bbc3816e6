"""Which predictions and scores share a job: every file is made by exactly one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from gapinit.evaluation_jobs import EvaluationJobs, prediction_jobs, scoring_jobs
from gapinit.plan import Plan, make_plan
from gapinit.runs import Run
from gapinit.settings import read_yaml

CONFIG = Path(__file__).parent.parent / "config"


def plan_of(*names: str) -> Plan:
    sources = [CONFIG / "default.yaml", *(CONFIG / f"{name}.yaml" for name in names)]
    content: dict[str, object] = {}
    for source in sources:
        content |= read_yaml(source)
    return make_plan(content, CONFIG, sources)


@pytest.fixture(scope="module", params=["default", "demo"])
def plan(request: pytest.FixtureRequest) -> Plan:
    return plan_of(*([] if request.param == "default" else [request.param]))


def made(jobs: list[EvaluationJobs]) -> Counter[str]:
    return Counter(f"{row}/{path}" for one in jobs for row in one.rows for path in one.paths())


def test_every_file_is_made_once(plan: Plan) -> None:
    wanted = {path for table in plan.experiments for path in plan.scores(table)}
    names = {path.removesuffix(".scores.json") for path in wanted}
    for jobs in (prediction_jobs(plan), scoring_jobs(plan)):
        found = made(jobs)
        assert set(found) == names
        assert set(found.values()) == {1}


def test_seeds_share_a_job(plan: Plan) -> None:
    jobs = prediction_jobs(plan)
    runs = {run for table in plan.experiments for run in plan.runs(table)}
    scored = {run for run in runs if any(run.path in path for path in made(jobs))}
    assert sum(len(one.rows) for one in jobs) < len(scored) / 2
    for one in jobs:
        for row in one.rows:
            assert all(Run.parse(f"{row}/{seed}") in runs for seed in one.seeds)


def test_a_job_scores_by_the_metrics_of_its_runs(plan: Plan) -> None:
    for one in scoring_jobs(plan):
        (dataset,) = one.datasets
        captions = plan.kind(dataset) == "captions"
        assert bool(one.scorers) == captions
        for row in one.rows if captions else ():
            for seed in one.seeds:
                assert plan.scorers(Run.parse(f"{row}/{seed}"), dataset) == one.scorers
