"""The jobs of a plan in every stage that needs much disk, memory or time. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from gapinit.config.runs import Run
from gapinit.workflow.plan import Plan

if TYPE_CHECKING:
    from gapinit.backbones.facts import Facts
    from gapinit.workflow.doctor.sizes import Size, Test, Train

Item = TypeVar("Item")


@dataclass(frozen=True)
class Jobs:
    """The jobs of a plan, each once."""

    states: list[tuple[str, str]]
    """Backbone and dataset."""
    gaps: list[tuple[str, str]]
    """Backbone and name of the gap: calibration source with its size."""
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
        """Return the units of work, scores included; one Snakemake job may do several."""
        made = len(self.datasets) + len(self.backbones) + len(self.states) + len(self.gaps)
        learned = len(self.trunks) + len(self.trained) + len(self.features)
        return made + learned + 2 * len(self.predictions)


@dataclass(frozen=True)
class Case:
    """A backbone with known shapes on a dataset; `size` is None if it is unknown."""

    plan: Plan
    backbone: str
    dataset: str
    facts: Facts
    size: Size | None

    @property
    def image(self) -> tuple[int, int]:
        """Return a typical image's width and height."""
        assert self.size is not None
        return self.size.image

    @property
    def train(self) -> Train:
        """Return the size of the training split; only for cases that have one."""
        assert self.size is not None and self.size.train is not None
        return self.size.train

    @property
    def test(self) -> Test:
        """Return the size of the evaluation split; only for cases that have one."""
        assert self.size is not None and self.size.test is not None
        return self.size.test

    @property
    def text_tokens(self) -> int:
        """Return the tokens of a training text with its template, after truncation."""
        longest = self.plan.max_tokens(self.dataset, self.backbone)
        return self.facts.template.prompt + min(self.train.tokens, longest)

    def adapted_layers(self, layers: str) -> range:
        """Return the layers that a strategy adapts.

        GG-Safe chooses layers from measurements that do not exist yet, so the last layers are
        taken instead. All layers of a decoder have the same size; only the number of frozen layers
        below the first adapted one may differ.
        """
        total = self.facts.num_layers
        chosen = self.plan.config.layers_of(self.backbone).num_layers
        return range(0 if layers.startswith("all") else total - chosen, total)


def plan_jobs(plan: Plan) -> Jobs:
    """Return the jobs that the tables and figures of a plan need."""
    trained = plan.trained()
    # The choice of layers and the figures read the default gap.
    needing = [plan.config.backbone, *(run.backbone for run in trained)]
    gaps = [(backbone, plan.default_gap) for backbone in needing]
    gaps = _once([*gaps, *((run.backbone, plan.gap_name(run)) for run in trained)])
    predictions = _once(
        (run, dataset)
        for table in plan.rows
        for run in plan.runs(table)
        for dataset in plan.evaluated_on(table)
    )
    states = _once(
        (backbone, dataset)
        for backbone, name in gaps
        for dataset in plan.sources(name.rpartition("-")[0])
    )
    trained_on = [(run, run.dataset) for run in trained]
    datasets = [dataset for _, dataset in [*states, *trained_on, *predictions]]
    return Jobs(
        states=states,
        gaps=gaps,
        trunks=_once((run.backbone, run.dataset, str(run.layers)) for run in trained),
        trained=trained,
        features=_once((run.backbone, dataset) for run, dataset in predictions),
        predictions=predictions,
        datasets=_once([plan.in_domain, *datasets]),
        backbones=_once([plan.config.backbone, *(run.backbone for run in plan.runs())]),
    )


def _once(items: Iterable[Item]) -> list[Item]:
    return list(dict.fromkeys(items))
