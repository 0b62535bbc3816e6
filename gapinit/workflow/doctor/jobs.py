"""What a plan will run: the jobs of every stage that costs disk, memory or time. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from gapinit.config.runs import Run
from gapinit.workflow.plan import Plan

Item = TypeVar("Item")


@dataclass(frozen=True)
class Jobs:
    """The jobs of a plan, each once."""

    states: list[tuple[str, str]]
    """Backbone and dataset."""
    gaps: list[tuple[str, str]]
    """Backbone, and calibration with its size."""
    trunks: list[tuple[str, str, str]]
    """Backbone, dataset and layers."""
    trained: list[Run]
    features: list[tuple[str, str]]
    """Backbone and dataset."""
    predictions: list[tuple[Run, str]]
    """Run and dataset."""
    datasets: list[str]
    backbones: list[str]

    @property
    def count(self) -> int:
        """Return how many pieces of work these are, scores included; jobs may share several."""
        made = len(self.datasets) + len(self.backbones) + len(self.states) + len(self.gaps)
        learned = len(self.trunks) + len(self.trained) + len(self.features)
        return made + learned + 2 * len(self.predictions)


def plan_jobs(plan: Plan) -> Jobs:
    """Return the jobs that a plan's tables and figures need."""
    trained = plan.trained()
    calibration = plan.config.calibration
    default = f"{calibration.source}-{calibration.size}"
    backbones = list(dict.fromkeys([plan.config.backbone, *(run.backbone for run in plan.runs())]))
    # Layers are chosen, and the figures drawn, from the default gap.
    needing = [plan.config.backbone, *(run.backbone for run in trained)]
    gaps = [(backbone, default) for backbone in needing]
    gaps = _once([*gaps, *((run.backbone, plan.gap_name(run)) for run in trained)])
    predictions = _once(
        [
            (run, dataset)
            for table in plan.rows
            for run in plan.runs(table)
            for dataset in plan.evaluated_on(table)
        ]
    )
    states = _once(
        [
            (backbone, dataset)
            for backbone, name in gaps
            for dataset in plan.sources(name.rpartition("-")[0])
        ]
    )
    return Jobs(
        states=states,
        gaps=gaps,
        trunks=_once([(run.backbone, run.dataset, str(run.layers)) for run in trained]),
        trained=trained,
        features=_once([(run.backbone, dataset) for run, dataset in predictions]),
        predictions=predictions,
        datasets=_once(
            [
                plan.in_domain,
                *(dataset for _, dataset in states),
                *(run.dataset for run in trained),
                *(dataset for _, dataset in predictions),
            ]
        ),
        backbones=backbones,
    )


def _once(items: list[Item]) -> list[Item]:
    return list(dict.fromkeys(items))
