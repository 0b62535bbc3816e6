"""The runs of one pass: their adapters are made one after another and then trained together."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import set_seed

from gapinit.adapters.files import save_adapter
from gapinit.adapters.lora import ADAPTER, alignment, gap_share, lora_layers, module_directions
from gapinit.adapters.methods.setup import Adapted, Setup, adapt
from gapinit.artifacts.artifacts import atomic_folder, package_versions, write_json
from gapinit.artifacts.checkpoints import seal
from gapinit.gap.layers import adapts_vision
from gapinit.train.batch_order import Order, Orders
from gapinit.train.dropout import mask_generator, use_own_dropout
from gapinit.train.job import Goal, Job, shared_checkpoints
from gapinit.train.loop import RunsTrainer
from gapinit.train.processes import is_main, process
from gapinit.train.step_log import StepLog
from gapinit.train.tail_module import Tail
from gapinit.train.together import StackedTail, Weights, weights_of
from gapinit.train.trainer_arguments import training_arguments

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone


@dataclass(frozen=True)
class Prepared:
    """A run whose adapter is initialised, with what its record says of that."""

    goal: Goal
    adapted: Adapted
    weights: Mapping[str, Weights]
    order: Order
    log: StepLog
    alpha: float
    alignment_at_init: list[float]
    gradient_share: float
    trainable_parameters: int


def train_group(model: Backbone, job: Job, goals: list[Goal]) -> list[str]:
    """Train runs in one pass and put each where it waits for the others of its process.

    Returns what went wrong with some of them. The backbone is left as it was.
    """
    began = time.monotonic()
    prepared: list[Prepared] = []
    with _unchanged(model, job.layers), tempfile.TemporaryDirectory() as scratch:
        for goal in goals:
            if prepared:
                _take_off(prepared[-1].adapted.model)
            prepared.append(_prepare(goal, model, job))
        last = prepared[-1].adapted
        before = Path(scratch) / "before-training" if last.converts else None
        if before is not None:
            save_adapter(last.model, before)
        if len(goals) > 1:
            give = _train_stacked(model, job, prepared, Path(scratch))
        else:
            give = _train_alone(model, job, prepared[0], Path(scratch))
        for index, one in enumerate(prepared):
            if one.log.failed is not None or not is_main():
                continue
            give(index)
            with atomic_folder(one.goal.place) as folder:
                save_adapter(last.model, folder / "adapter", before, with_base=last.saves_base)
                one.log.write(folder / "steps.csv")
                write_json(folder / "run.json", _record(one, job))
                write_json(folder / "process.json", _process(goals, began))
                seal(folder, one.goal.identity)
        _take_off(last.model)
    return [one.log.failed for one in prepared if one.log.failed is not None]


def _prepare(goal: Goal, model: Backbone, job: Job) -> Prepared:
    """Put a run's adapter on the backbone, and measure what it starts from."""
    run = goal.run
    assert run.seed is not None and run.rank is not None, "train_runs lets no other run come here"
    order = Order(job.trunk, job.recipe, run, job.device)
    set_seed(run.seed)
    setup = Setup(
        backbone=model,
        layers=job.layers,
        rank=run.rank,
        alpha=job.lora.alpha_per_rank * run.rank,
        dropout=job.lora.dropout,
        gap=torch.from_numpy(job.gap.gap),
        noise=run.noise,
        noise_scale=run.noise_scale or "unit",
        generator=torch.Generator().manual_seed(run.seed),
        means={
            "text": torch.from_numpy(job.gap.text_mean),
            "vision": torch.from_numpy(job.gap.vision_mean),
        },
        vision=adapts_vision(str(run.layers)),
        first_batches=order.first,
    )
    # Before the adapter: some methods change the weights whose gradient this is.
    share = gap_share(model, job.layers, setup.batches(1)[0], setup.gap)
    # The gap is the decoder's: modules of the vision tower have none.
    decoder = model.named_targets(job.layers)
    adapted = adapt(run.method, setup)
    heldout = job.gap.heldout_gap if job.gap.heldout_gap is not None else job.gap.gap
    check = module_directions(adapted.model, torch.from_numpy(heldout), only=decoder)
    parameters = adapted.model.parameters()
    return Prepared(
        goal=goal,
        adapted=adapted,
        weights=weights_of(adapted.model),
        order=order,
        log=StepLog(run.path, module_directions(adapted.model, setup.gap, only=decoder)),
        alpha=setup.alpha,
        alignment_at_init=alignment(adapted.model, check),
        gradient_share=share,
        trainable_parameters=sum(one.numel() for one in parameters if one.requires_grad),
    )


def _train_alone(model: Backbone, job: Job, one: Prepared, scratch: Path) -> Any:
    """Train one run in PEFT's own modules; return what `give` of a stack is: nothing is left."""
    peft = one.adapted.model
    generator = mask_generator(one.goal.run.seed or 0, model.device, process()[0])
    use_own_dropout(peft, generator)
    layers = lora_layers(peft)

    def columns() -> list[dict[str, Tensor]]:
        return [{name: it.lora_B[ADAPTER].weight.detach()[:, 0] for name, it in layers.items()}]

    _fit(job, [one], Tail(peft, model), columns, [generator], scratch)
    return lambda index: None


def _train_stacked(model: Backbone, job: Job, prepared: list[Prepared], scratch: Path) -> Any:
    """Train runs on one batch of all; return what gives PEFT's modules the weights of a run."""
    rank = process()[0]
    generators = [mask_generator(it.goal.run.seed or 0, model.device, rank) for it in prepared]
    weights = [one.weights for one in prepared]
    tail = StackedTail(prepared[-1].adapted.model, model, weights, generators)

    def columns() -> list[dict[str, Tensor]]:
        found = tail.columns()
        return [{name: it[run] for name, it in found.items()} for run in range(len(prepared))]

    try:
        _fit(job, prepared, tail, columns, generators, scratch)
    finally:
        tail.finish()
    return tail.give


def _fit(
    job: Job,
    prepared: list[Prepared],
    tail: Tail,
    columns: Any,
    generators: list[torch.Generator],
    scratch: Path,
) -> None:
    """Run the training loop to its end, or on from the last checkpoint."""
    checkpoints, identity = shared_checkpoints([one.goal for one in prepared])
    steps = job.recipe.checkpoint_steps
    arguments = training_arguments(
        job.recipe,
        prepared[0].goal.run,
        scratch,
        job.device,
        per_device_train_batch_size=1,  # an item is the batches of all runs
        save_strategy="steps" if steps else "no",
        save_steps=steps or 1,
    )
    trainer = RunsTrainer(
        tail,
        Orders(job.trunk, [one.order for one in prepared]),
        [one.log for one in prepared],
        columns,
        arguments,
        generators=generators,
        checkpoints=checkpoints,
        identity=identity,
    )
    trainer.run()


def _take_off(model: PeftModel) -> None:
    """Leave the backbone without the adapter; weights that a method changed stay changed."""
    base: Any = model.base_model
    base.unload()


@contextmanager
def _unchanged(model: Backbone, layers: list[int]) -> Iterator[None]:
    """Put the adapted matrices back as they were: some methods change them.

    Into the same memory: a product's last bits may depend on how its matrix is aligned.
    """
    before = {name: it.weight.data for name, it in model.named_targets(layers).items()}
    copies = {name: weight.clone() for name, weight in before.items()}
    yield
    for name, module in model.named_targets(layers).items():
        module.weight.data = before[name].copy_(copies[name])


def _record(one: Prepared, job: Job) -> dict[str, Any]:
    """Return what `run.json` says: the same again for the same run, wherever it is trained."""
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


def _process(goals: list[Goal], began: float) -> dict[str, Any]:
    """Return what `process.json` says: how the run was made, which no number depends on."""
    return {
        "seconds": (time.monotonic() - began) / len(goals),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
        "processes": process()[1],
        "command": sys.argv[1:],
        "in_one_pass": [goal.run.path for goal in goals],
    }
