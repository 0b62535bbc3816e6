"""Which predictions and scores are made by one job: those of a row's seeds.

A process that predicts pays for its imports and for loading a backbone, one that scores for
starting Java. Runs that differ in their seed alone share both.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from gapinit.plan import Plan
    from gapinit.runs import Run

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class EvaluationJobs:
    """Jobs of one form: each takes some seeds of one row on some datasets."""

    rows: tuple[str, ...]
    """The rows: what the paths of a row's runs have in common. A job each."""
    seeds: tuple[str, ...]
    """The rest of the runs' paths."""
    datasets: tuple[str, ...]
    scorers: str = ""
    """Of captions: what `gapinit score captions --metrics` takes."""

    def paths(self) -> list[str]:
        """Return the path of every output of a job, below `{row}`, seed by seed."""
        return [f"{seed}/{dataset}" for seed in self.seeds for dataset in self.datasets]


def prediction_jobs(plan: Plan) -> list[EvaluationJobs]:
    """Return the jobs that make all predictions: seeds of one training job, on all datasets."""
    trained = {
        (row, seed): chunk
        for chunk, rows in plan.chunks().items()
        for row in rows
        for seed in chunk
    }
    asked = [
        (run, (trained.get((run.row, run.seed or 0)), tuple(datasets)))
        for run, datasets in _evaluated(plan).items()
    ]
    return [
        EvaluationJobs(rows, seeds, datasets)
        for (seeds, (_, datasets)), rows in _forms(asked).items()
    ]


def scoring_jobs(plan: Plan) -> list[EvaluationJobs]:
    """Return the jobs that make all scores: a row's seeds on one dataset, by the same metrics."""
    asked = [
        (run, (dataset, plan.scorers(run, dataset) if plan.kind(dataset) == "captions" else ""))
        for run, datasets in _evaluated(plan).items()
        for dataset in datasets
    ]
    return [
        EvaluationJobs(rows, seeds, (dataset,), scorers)
        for (seeds, (dataset, scorers)), rows in _forms(asked).items()
    ]


def _evaluated(plan: Plan) -> dict[Run, list[str]]:
    """Return the datasets that each run is scored on, over all tables."""
    found: dict[Run, dict[str, None]] = {}
    for table in plan.experiments:
        for run in plan.runs(table):
            found.setdefault(run, {}).update(dict.fromkeys(plan.evaluated_on(table)))
    return {run: list(datasets) for run, datasets in found.items() if datasets}


def _forms(
    asked: Iterable[tuple[Run, Key]],
) -> dict[tuple[tuple[str, ...], Key], tuple[str, ...]]:
    """Return the rows of each form of a job: the same seeds with the same key."""
    seeds: dict[tuple[str, Key], list[str]] = {}
    for run, key in asked:
        path = PurePosixPath(run.path)
        seeds.setdefault((str(path.parent), key), []).append(path.name)
    forms: dict[tuple[tuple[str, ...], Key], list[str]] = {}
    for (row, key), names in seeds.items():
        forms.setdefault((tuple(names), key), []).append(row)
    return {form: tuple(rows) for form, rows in forms.items()}
