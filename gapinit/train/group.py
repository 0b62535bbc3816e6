"""Train one run: create its adapter, train it and write it."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import set_seed

from gapinit.adapters.directions import (
    column_cosine,
    decoder_modules,
    gap_share,
    module_directions,
)
from gapinit.adapters.files import save_adapter
from gapinit.adapters.lora import ADAPTER, lora_layers
from gapinit.adapters.methods.setup import Adapted, Setup, adapt
from gapinit.artifacts.artifacts import atomic_folder, package_versions, write_json
from gapinit.artifacts.checkpoints import checkpoints_of, seal
from gapinit.gap.layers import adapts_vision
from gapinit.train.batch_order import Order
from gapinit.train.dropout import mask_generator, use_own_dropout
from gapinit.train.job import Goal, Job
from gapinit.train.loop import RunTrainer
from gapinit.train.step_log import StepLog
from gapinit.train.tail_module import Tail
from gapinit.train.trainer_arguments import training_arguments

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone


@dataclass(frozen=True)
class Prepared:
    """A run with an initialised adapter, and the values of its initial state."""

    goal: Goal
    adapted: Adapted
    order: Order
    log: StepLog
    alpha: float
    alignment_at_init: list[float]
    gradient_share: float
    trainable_parameters: int


def train_one(model: Backbone, job: Job, goal: Goal) -> None:
    """Train a run and write its files to `goal.place`; restore the backbone.

    Raises GapinitError for a loss that is not finite.
    """
    began = time.monotonic()
    with _unchanged(model, job.layers), tempfile.TemporaryDirectory() as scratch:
        recipe = job.recipe.of(goal.run)
        arguments = training_arguments(recipe, goal.run, Path(scratch), job.device)
        one = _prepare(goal, model, job, Order(job.trunk, arguments))
        peft = one.adapted.model
        before = Path(scratch) / "before-training" if one.adapted.converts else None
        if before is not None:
            save_adapter(peft, before)
        generator = mask_generator(arguments.seed, model.device)
        use_own_dropout(peft, generator)
        trainer = RunTrainer(
            Tail(peft, model),
            one.order,
            one.log,
            arguments,
            generator=generator,
            checkpoints=checkpoints_of(goal.output, goal.identity),
            identity=goal.identity,
        )
        trainer.run()
        with atomic_folder(goal.place) as folder:
            save_adapter(peft, folder / "adapter", before, with_base=one.adapted.saves_base)
            one.log.write(folder / "steps.csv")
            write_json(folder / "run.json", _record(one, job))
            write_json(folder / "process.json", _process(began))
            seal(folder, goal.identity)
        base: Any = peft.base_model
        base.unload()  # keeps the weights that a method changed; `_unchanged` restores them


def _prepare(goal: Goal, model: Backbone, job: Job, order: Order) -> Prepared:
    """Put a run's adapter on the backbone, and measure its initial state."""
    run = goal.run
    assert run.seed is not None and run.rank is not None, "train_runs has checked the run"
    set_seed(run.seed)
    recipe = job.recipe.of(run)
    setup = Setup(
        backbone=model,
        layers=job.layers,
        rank=run.rank,
        alpha=recipe.alpha_per_rank * run.rank,
        dropout=recipe.dropout,
        gap=job.gap,
        noise=run.noise,
        noise_scale=run.noise_scale or "unit",
        generator=torch.Generator().manual_seed(run.seed),
        vision=adapts_vision(str(run.layers)),
        first_batches=order.first,
    )
    # Before the adapter: some methods change the weights.
    share = gap_share(model, job.layers, setup.batches(1)[0], setup.gap)
    adapted = adapt(run.method, setup)
    # Only decoder layers have a gap, not the vision tower.
    modules = decoder_modules(model)
    heldout = job.gap if job.gap.heldout is None else replace(job.gap, vectors=job.gap.heldout)
    check = module_directions(modules, heldout, untrained=True)
    directions = module_directions(modules, job.gap, untrained=True)
    parameters = adapted.model.parameters()
    return Prepared(
        goal=goal,
        adapted=adapted,
        order=order,
        log=StepLog(run.path, lora_layers(adapted.model), directions),
        alpha=setup.alpha,
        alignment_at_init=[
            column_cosine(one.module.lora_B[ADAPTER].weight.detach()[:, 0], check[one.name])
            for one in modules
        ],
        gradient_share=share,
        trainable_parameters=sum(one.numel() for one in parameters if one.requires_grad),
    )


@contextmanager
def _unchanged(model: Backbone, layers: list[int]) -> Iterator[None]:
    """Restore the adapted matrices, which some methods change, in the same memory.

    The last bits of a product may depend on the memory alignment of its matrix.
    """
    before = {name: it.weight.data for name, it in model.named_targets(layers).items()}
    copies = {name: weight.clone() for name, weight in before.items()}
    yield
    for name, module in model.named_targets(layers).items():
        module.weight.data = before[name].copy_(copies[name])


def _record(one: Prepared, job: Job) -> dict[str, Any]:
    """Return the content of `run.json`, which is the same whenever the run is trained."""
    return {
        "factors": one.goal.run.factors,
        "trainable_parameters": one.trainable_parameters,
        "first_grad_norm": one.log.rows[0]["grad_norm"],
        "final_loss": one.log.mean_of_last(0.1),
        "noise_cosine": one.adapted.noise_cosine,
        "changes_base": one.adapted.changes_base,
        "versions": package_versions(),
        "recipe": job.recipe_of(one.goal.run),
        "layers": job.layers,
        "alignment_at_init": one.alignment_at_init,
        "gradient_share": one.gradient_share,
        "inputs": job.inputs,
    }


def _process(began: float) -> dict[str, Any]:
    """Return the content of `process.json`: time, memory and command, which affect no number."""
    return {
        "seconds": time.monotonic() - began,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
        "command": sys.argv[1:],
    }
