"""Group predictions and scores into jobs: seeds trained in one job also share these jobs.

A prediction process needs time for imports and to load a backbone, a scoring process to start Java.
Runs that differ only in their seed share this time.
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
    """Jobs with the same seeds and datasets, one job per row of a table."""

    name: str
    """Part of the rule's name, unique within the stage."""
    rows: tuple[str, ...]
    """Common part of the run paths of each row; one job per row."""
    seeds: tuple[str, ...]
    """Last part of the run paths."""
    datasets: tuple[str, ...]

    def paths(self) -> list[str]:
        """Return the paths of all outputs of a job below `{row}`, ordered by seed."""
        return [f"{seed}/{dataset}" for seed in self.seeds for dataset in self.datasets]


def evaluation_jobs(plan: Plan) -> list[EvaluationJobs]:
    """Return all prediction jobs: each has the seeds of one training job, on all datasets."""
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
    """Return the groups of seeds that a job scores on one dataset, with the rows of each group."""
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for one in jobs:
        found.setdefault(one.seeds, {}).update(dict.fromkeys(one.rows))
    return {seeds: list(rows) for seeds, rows in found.items()}


def _name(seeds: tuple[str, ...], datasets: tuple[str, ...]) -> str:
    text = "_".join([*(seed.removeprefix("seed") for seed in seeds), "on", *datasets])
    return "".join(it if it.isalnum() else "_" for it in text)


def _evaluated(plan: Plan) -> dict[Run, tuple[str, ...]]:
    """Return for each run all datasets on which a table scores it."""
    found: dict[Run, dict[str, None]] = {}
    for table in plan.experiments:
        for run in plan.runs(table):
            found.setdefault(run, {}).update(dict.fromkeys(plan.evaluated_on(table)))
    return {run: tuple(datasets) for run, datasets in found.items() if datasets}
