"""Which predictions and scores are made by one job: those of seeds that are trained in one job.

A process that predicts pays for its imports and for loading a backbone, one that scores for
starting Java. Runs that differ in their seed alone share both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gapinit.config.runs import Run
    from gapinit.workflow.plan import Plan


@dataclass(frozen=True)
class EvaluationJobs:
    """Jobs of one form: each takes some seeds of one row on some datasets."""

    name: str
    """What tells their rule from others of its stage."""
    rows: tuple[str, ...]
    """The rows: what the paths of a row's runs have in common. A job each."""
    seeds: tuple[str, ...]
    """The rest of the runs' paths."""
    datasets: tuple[str, ...]

    def paths(self) -> list[str]:
        """Return the path of every output of a job, below `{row}`, seed by seed."""
        return [f"{seed}/{dataset}" for seed in self.seeds for dataset in self.datasets]


def evaluation_jobs(plan: Plan) -> list[EvaluationJobs]:
    """Return the jobs that make all predictions: seeds of a training job, on all datasets."""
    chunks = {
        f"{row}/seed{seed}": chunk
        for chunk, rows in plan.chunks().items()
        for row in rows
        for seed in chunk
    }
    seeds: dict[tuple[str, object, tuple[str, ...]], list[str]] = {}
    for run, datasets in _evaluated(plan).items():
        row, _, seed = run.path.rpartition("/")
        seeds.setdefault((row, chunks.get(run.path), datasets), []).append(seed)
    forms: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for (row, _, datasets), names in seeds.items():
        forms.setdefault((tuple(names), datasets), []).append(row)
    return [
        EvaluationJobs(_name(names, datasets), tuple(rows), names, datasets)
        for (names, datasets), rows in forms.items()
    ]


def scored_together(jobs: Iterable[EvaluationJobs]) -> dict[tuple[str, ...], list[str]]:
    """Return the seeds whose scores on one dataset are made by a job, and the rows of such jobs."""
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for one in jobs:
        found.setdefault(one.seeds, {}).update(dict.fromkeys(one.rows))
    return {seeds: list(rows) for seeds, rows in found.items()}


def _name(seeds: tuple[str, ...], datasets: tuple[str, ...]) -> str:
    text = "_".join([*(seed.removeprefix("seed") for seed in seeds), "on", *datasets])
    return "".join(it if it.isalnum() else "_" for it in text)


def _evaluated(plan: Plan) -> dict[Run, tuple[str, ...]]:
    """Return the datasets that each run is scored on, over all tables."""
    found: dict[Run, dict[str, None]] = {}
    for table in plan.experiments:
        for run in plan.runs(table):
            found.setdefault(run, {}).update(dict.fromkeys(plan.evaluated_on(table)))
    return {run: tuple(datasets) for run, datasets in found.items() if datasets}
