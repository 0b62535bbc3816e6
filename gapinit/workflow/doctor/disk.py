"""The bytes that a plan writes to disk, computed from shapes of backbones and sizes of datasets.

- A trunk (`gapinit.train.trunk.modes`) stores the ids and labels of the texts and d values for
  each prefix token; d values for each text token, too, unless the lowest layer is adapted. A value
  has the backbone's dtype (bfloat16 and float16: 2 bytes, else 4) or `training.trunk_dtype`.
- Image features have d values for each image token of an evaluation split.
- States and adapters are float32.
- Predictions, scores, logs, tables and figures are small and not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gapinit.backbones.facts import STATE_BYTES
from gapinit.config.methods import METHODS
from gapinit.config.runs import Run
from gapinit.gap.layers import adapts_vision
from gapinit.train.trunk.modes import TrunkSize, stored_bytes, trunk_mode
from gapinit.workflow.doctor.jobs import Case, Jobs
from gapinit.workflow.plan import Plan

STEP_BYTES = 60
"""A line of a step log: loss, gradient norm, learning rate, alignment."""


@dataclass(frozen=True)
class Need:
    """A file or folder that the plan writes, with its bytes."""

    kind: str
    name: str
    bytes: int
    path: Path
    there: bool = False
    """True if it exists already: it is not written again."""


def disk_needs(plan: Plan, jobs: Jobs, case_of: Callable[[str, str], Case | None]) -> list[Need]:
    """Return what the stages write; jobs of unknown size are left out."""
    out = Path(plan.config.results) / plan.config.name
    needs = []

    def add(kind: str, name: str, count: int, stem: Path) -> None:
        shards = getattr(plan.config.shards, kind)
        parts = [f".{index}-of-{shards}" for index in range(1, shards + 1)] if shards > 1 else [""]
        paths = [stem.with_name(f"{stem.name}{part}.h5") for part in parts]
        there = all(path.exists() for path in paths)
        needs.append(Need(kind, name, count, paths[0], there))

    for backbone, dataset in jobs.states:
        case = case_of(backbone, dataset)
        if case is not None:
            count = case.facts.states_bytes(plan.config.calibration.pairs())
            add("states", f"{backbone}, {dataset}", count, out / "2_states" / backbone / dataset)
    for backbone, dataset, layers in jobs.trunks:
        case = case_of(backbone, dataset)
        if case is not None and case.size is not None and case.size.train is not None:
            stem = out / "4_train" / "trunk" / backbone / dataset / layers
            add("trunk", f"{backbone}, {dataset}, {layers}", trunk_bytes(case, layers), stem)
    for backbone, dataset in jobs.features:
        case = case_of(backbone, dataset)
        if case is not None and case.size is not None and case.size.test is not None:
            tokens = case.test.images * case.facts.image_tokens(case.image)
            count = tokens * case.facts.hidden_size * case.facts.value_bytes
            stem = out / "5_evaluate" / "features" / backbone / dataset
            add("features", f"{backbone}, {dataset}", count, stem)
    for run in jobs.trained:
        case = case_of(run.backbone, run.dataset)
        if case is not None:
            path = out / "4_train" / "runs" / run.path / "run.json"
            needs.append(Need("runs", run.backbone, run_bytes(case, run), path, path.exists()))
    return needs


def trunk_bytes(case: Case, layers: str) -> int:
    """Return the bytes of a trunk."""
    training, facts = case.plan.config.training_of(case.backbone), case.facts
    images, texts = case.train.images, case.train.texts
    size = TrunkSize(
        images=images,
        texts=texts,
        tokens=texts * case.text_tokens,
        prefix=images * facts.prefix_tokens(case.image),
        memory=images * facts.memory_tokens(case.image),
        width=facts.hidden_size,
        value_bytes=stored_bytes(training.trunk_dtype, facts.value_bytes),
        grid_width=facts.backbone.grid_width,
    )
    first = min(case.adapted_layers(layers))
    return round(size.bytes(trunk_mode(training.trunk, first, vision=adapts_vision(layers))))


def run_bytes(case: Case, run: Run) -> int:
    """Return the bytes of a run's folder: adapter, extra files of its method, step log."""
    assert run.rank is not None and run.layers is not None
    facts, applies = case.facts, METHODS[run.method].applies
    layers = case.adapted_layers(run.layers)
    rank = 2 * run.rank if "saved as twice the rank" in applies else run.rank
    total = facts.adapter(layers, rank) * STATE_BYTES
    if "saved beside the adapter" in applies:
        matrices = [target for layer in layers for target in facts.targets[layer]]
        total += sum(it.d_out * it.d_in for it in matrices) * facts.value_bytes
    if case.size is not None and case.size.train is not None:
        recipe = case.plan.config.training_of(run.backbone)
        batches = -(-case.train.texts // recipe.batch_size)
        steps = -(-batches // recipe.gradient_accumulation) * (run.epochs or recipe.epochs)
        total += steps * STEP_BYTES
    return total
