"""What a plan writes to disk, by formulas from the backbones' shapes and the datasets' sizes.

A trunk (`gapinit.train.trunk.modes`) holds, in the backbone's own precision (2 bytes a value for
bfloat16 and float16, else 4) or in `training.trunk_dtype`, d values for each image's prefix and,
unless the lowest layer is adapted, for each text token, and the texts' ids and labels;
features d values for each image token of an evaluation split; states and adapters are float32.
Predictions, scores, logs, tables and figures are left out: they are small beside these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gapinit.config.methods import METHODS
from gapinit.config.runs import Run
from gapinit.gap.layers import adapts_vision
from gapinit.train.trunk.modes import TrunkSize, stored_bytes, trunk_mode
from gapinit.workflow.plan import Plan

if TYPE_CHECKING:
    from gapinit.backbones.facts import Facts
    from gapinit.workflow.doctor.jobs import Jobs
    from gapinit.workflow.doctor.sizes import Size

STEP_BYTES = 60
"""A line of a step log: loss, gradient, rate, alignment."""


@dataclass(frozen=True)
class Need:
    """Bytes that are written at a place."""

    kind: str
    name: str
    bytes: int
    path: Path
    there: bool = False
    """Whether it is there already and is not written again."""


def disk_needs(
    plan: Plan, jobs: Jobs, facts: Mapping[str, Facts], sizes: Mapping[str, Size]
) -> list[Need]:
    """Return what the stages write whose backbone and dataset have known sizes."""
    out = Path(plan.config.results) / plan.config.name
    pairs = plan.config.calibration.pairs()
    needs = []

    def add(kind: str, name: str, count: float, *paths: Path) -> None:
        there = all(path.exists() for path in paths)
        needs.append(Need(kind, name, round(count), paths[0], there))

    def parts(stage: str, stem: Path) -> list[Path]:
        jobs = getattr(plan.config.shards, stage)
        names = [f".{index}-of-{jobs}" for index in range(1, jobs + 1)] if jobs > 1 else [""]
        return [stem.with_name(f"{stem.name}{name}.h5") for name in names]

    for backbone, dataset in jobs.states:
        if backbone in facts:
            count = facts[backbone].states_bytes(pairs)
            paths = parts("states", out / "2_states" / backbone / dataset)
            add("states", f"{backbone}, {dataset}", count, *paths)
    for backbone, dataset, layers in jobs.trunks:
        size = sizes.get(dataset)
        if backbone in facts and size is not None and size.train is not None:
            count = trunk_bytes(plan, facts[backbone], backbone, dataset, layers, size)
            paths = parts("trunk", out / "4_train" / "trunk" / backbone / dataset / layers)
            add("trunk", f"{backbone}, {dataset}, {layers}", count, *paths)
    for backbone, dataset in jobs.features:
        size = sizes.get(dataset)
        if backbone in facts and size is not None and size.test is not None:
            tokens = size.test.images * facts[backbone].image_tokens(size.image)
            count = tokens * facts[backbone].hidden_size * facts[backbone].value_bytes
            paths = parts("features", out / "5_evaluate" / "features" / backbone / dataset)
            add("features", f"{backbone}, {dataset}", count, *paths)
    for run in jobs.trained:
        if run.backbone in facts:
            count = run_bytes(plan, run, facts[run.backbone], sizes.get(run.dataset))
            add("runs", run.backbone, count, out / "4_train" / "runs" / run.path / "run.json")
    return needs


def trunk_bytes(
    plan: Plan, facts: Facts, backbone: str, dataset: str, layers: str, size: Size
) -> int:
    """Return the bytes of a trunk: each image's prefix and, above the first layer, each text."""
    assert size.train is not None
    training = plan.training_of(backbone)
    images, texts = size.train.images, size.train.texts
    first = first_layer(plan, facts, backbone, layers)
    found = TrunkSize(
        images=images,
        texts=texts,
        tokens=texts * text_tokens(plan, facts, backbone, dataset, size),
        prefix=images * facts.prefix_tokens(size.image),
        memory=images * facts.memory_tokens(size.image),
        width=facts.hidden_size,
        value_bytes=stored_bytes(training.trunk_dtype, facts.value_bytes),
        grid_width=facts.backbone.grid_width,
    )
    return round(found.bytes(trunk_mode(training.trunk, first, vision=adapts_vision(layers))))


def text_tokens(plan: Plan, facts: Facts, backbone: str, dataset: str, size: Size) -> int:
    """Return the tokens of a training text, template included, as cut by the recipe."""
    assert size.train is not None
    return facts.template.prompt + min(size.train.tokens, plan.max_tokens(dataset, backbone))


def adapted_layers(plan: Plan, facts: Facts, backbone: str, layers: str) -> range:
    """Return the layers that a strategy adapts.

    GG-Safe's are chosen by what is measured; the last ones stand for them: all layers of a decoder
    have the same size, and only how many run below the first one differs.
    """
    count = facts.num_layers if layers.startswith("all") else plan.layers_of(backbone).num_layers
    return range(facts.num_layers - count, facts.num_layers)


def first_layer(plan: Plan, facts: Facts, backbone: str, layers: str) -> int:
    """Return the lowest adapted layer."""
    return min(adapted_layers(plan, facts, backbone, layers))


def run_bytes(plan: Plan, run: Run, facts: Facts, size: Size | None) -> int:
    """Return the bytes of a run's folder: adapter, what its method saves beside, step log."""
    from gapinit.backbones.facts import STATE_BYTES

    assert run.rank is not None and run.layers is not None
    layers = adapted_layers(plan, facts, run.backbone, run.layers)
    applies = METHODS[run.method].applies
    rank = 2 * run.rank if "saved as twice the rank" in applies else run.rank
    total = facts.adapter(layers, rank) * STATE_BYTES
    matrices = [target for layer in layers for target in facts.targets[layer]]
    if "saved beside the adapter" in applies:
        total += sum(it.d_out * it.d_in for it in matrices) * facts.value_bytes
    if size is not None and size.train is not None:
        lines = steps(plan, run, size.train.texts)
        total += lines * STEP_BYTES
    return total


def steps(plan: Plan, run: Run, texts: int) -> int:
    """Return the optimiser's steps of a run."""
    recipe = plan.training_of(run.backbone)
    batches = -(-texts // recipe.batch_size)
    return -(-batches // recipe.gradient_accumulation) * (run.epochs or recipe.epochs)
