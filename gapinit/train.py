"""Stage `train`: one run's adapter, trained by Hugging Face Trainer on the cached trunk.

The tail is the backbone's own decoder above the frozen part, fed with cached states. Loss and
gradients are those of the whole model; only the work that no run changes is left out.
"""

from __future__ import annotations

import itertools
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from gapinit.adapter_folder import save_adapter
from gapinit.adapters import alignment, module_directions
from gapinit.artifacts import atomic_folder, package_versions, read_json, sha256, write_json
from gapinit.backbones import load_backbone
from gapinit.config import Lora, Training
from gapinit.errors import GapinitError
from gapinit.gap_file import read_gap
from gapinit.gradients import gap_share
from gapinit.launch import own_part, process, require_divisible, share
from gapinit.methods.setup import Adapted, Setup, adapt
from gapinit.runs import Run
from gapinit.states import backbone_digest
from gapinit.step_log import StepLog
from gapinit.tail import Tail
from gapinit.trunk import Trunk, read_trunk

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone
    from gapinit.gap_file import GapFile


def train_run(
    run: Run,
    backbone: Path,
    trunk: Path,
    layers: Path,
    gap: Path,
    output: Path,
    *,
    recipe: Training,
    lora: Lora,
    device: str = "cpu",
) -> None:
    """Train one run and write `adapter/`, `steps.csv` and `run.json` into `output`, as a whole.

    `gap` gives the direction to methods that use one, and to every run the direction against
    which its step log measures B. Raises GapinitError for inputs that do not belong together and
    for a loss that is not finite, with the step.
    """
    started = time.monotonic()
    require_divisible(recipe.batch_size, process()[1])
    if run.seed is None or run.rank is None or run.layers is None:
        raise GapinitError(f"run '{run.path}' is not one that is trained")
    chosen = read_json(layers)[run.layers]
    cached, directions = read_trunk(trunk), read_gap(gap)
    own_digest = backbone_digest(backbone)
    _require_same_backbone(own_digest, trunk, cached.inputs, "trunk")
    _require_same_backbone(own_digest, gap, directions.inputs, "gap")
    _require_first_layer(chosen, trunk, cached)
    set_seed(run.seed)
    model = load_backbone(backbone, device)
    if cached.text is None:
        model.drop_vision()
    else:
        model.cut_below(cached.first_layer)
    setup = _setup(run, model, chosen, directions, lora, FirstBatches(cached, recipe, run, device))
    # Before the adapter: some methods change the weights whose gradient this is.
    share = gap_share(model, chosen, setup.batches(1)[0], setup.gap)
    adapted = adapt(run.method, setup)
    own = module_directions(adapted.model, setup.gap)
    heldout = directions.heldout_gap if directions.heldout_gap is not None else directions.gap
    check = module_directions(adapted.model, torch.from_numpy(heldout))
    at_init = alignment(adapted.model, check)
    with tempfile.TemporaryDirectory() as scratch, _folder(output, Path(scratch)) as folder:
        log = StepLog(adapted.model, own)
        before = Path(scratch) / "before-training" if adapted.converts else None
        if before is not None:
            save_adapter(adapted.model, before)
        arguments = _arguments(recipe, run, Path(scratch), device)
        _trainer(Tail(adapted.model, model), cached, arguments, [log]).train()
        save_adapter(adapted.model, folder / "adapter", before, with_base=adapted.saves_base)
        log.write(folder / "steps.csv")
        inputs = {
            "backbone": own_digest,
            "trunk": cached.inputs,
            "layers": sha256(layers),
            "gap": sha256(gap),
        }
        recipe_used = {
            **recipe.model_dump(),
            **lora.model_dump(),
            "alpha": setup.alpha,
            "max_tokens": cached.inputs["max_tokens"],
        }
        record = _record(run, adapted, log) | {
            "recipe": recipe_used,
            "layers": chosen,
            "alignment_at_init": at_init,
            "gradient_share": share,
            "inputs": inputs,
            "seconds": time.monotonic() - started,
        }
        write_json(folder / "run.json", record)


def _setup(
    run: Run,
    backbone: Backbone,
    layers: list[int],
    gap: GapFile,
    lora: Lora,
    first_batches: FirstBatches,
) -> Setup:
    """Return what the run's method is given."""
    assert run.seed is not None and run.rank is not None, "train_run lets no other run come here"
    return Setup(
        backbone=backbone,
        layers=layers,
        rank=run.rank,
        alpha=lora.alpha_per_rank * run.rank,
        dropout=lora.dropout,
        gap=torch.from_numpy(gap.gap),
        noise=run.noise,
        noise_scale=run.noise_scale or "unit",
        generator=torch.Generator().manual_seed(run.seed),
        means={
            "text": torch.from_numpy(gap.text_mean),
            "vision": torch.from_numpy(gap.vision_mean),
        },
        first_batches=first_batches,
    )


def _record(run: Run, adapted: Adapted, log: StepLog) -> dict[str, Any]:
    """Return what `run.json` says of the run itself and of the process that trained it."""
    parameters = adapted.model.parameters()
    return {
        "factors": run.factors,
        "trainable_parameters": sum(value.numel() for value in parameters if value.requires_grad),
        "first_grad_norm": log.rows[0]["grad_norm"],
        "final_loss": log.mean_of_last(0.1),
        "noise_cosine": adapted.noise_cosine,
        "changes_base": adapted.changes_base,
        "versions": package_versions(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
        "processes": process()[1],
        "command": sys.argv[1:],
    }


@contextmanager
def _folder(output: Path, scratch: Path) -> Iterator[Path]:
    """Yield where the run is written: of several processes, the first one's is kept."""
    if process()[0] == 0:
        with atomic_folder(output) as folder:
            yield folder
    else:
        (scratch / "run").mkdir()
        yield scratch / "run"


class FirstBatches:
    """The batches that a run begins with, read only when they are asked for.

    They are those of the run's own Trainer, so that a first gradient is the first step's; drawing
    them leaves the random numbers of everything else as they are.
    """

    def __init__(self, trunk: Trunk, recipe: Training, run: Run, device: str) -> None:
        self._trunk, self._recipe, self._run, self._device = trunk, recipe, run, device
        self._read: list[dict[str, Tensor]] = []

    def __call__(self, samples: int) -> list[dict[str, Tensor]]:
        """Return as many batches as hold `samples` samples, or all of the first epoch."""
        count = math.ceil(samples / self._recipe.batch_size)
        if len(self._read) < count:
            devices = [self._device] if self._device.startswith("cuda") else []
            with torch.random.fork_rng(devices), tempfile.TemporaryDirectory() as scratch:
                arguments = _arguments(self._recipe, self._run, Path(scratch), self._device)
                trainer = _trainer(nn.Linear(1, 1), self._trunk, arguments, [], whole=True)
                self._read = list(itertools.islice(trainer.get_train_dataloader(), count))
        return self._read[:count]


class SharedTrainer(Trainer):
    """Trainer of which each of several processes takes its part of the same batches."""

    whole = False
    """Whether batches are not divided, though there are several processes."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches that one process alone would draw, in its order."""
        if process()[1] == 1:
            loader: DataLoader[Any] = super().get_train_dataloader()
            return loader
        trunk: Any = self.train_dataset
        loader = DataLoader(
            trunk,
            batch_size=self.args.train_batch_size,
            sampler=self._get_train_sampler(),
            collate_fn=self.data_collator if self.whole else self._collate_part,
        )
        prepared: DataLoader[Any] = prepare_data_loader(
            loader,
            device=self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            use_seedable_sampler=True,
            data_seed=self.args.data_seed,
        )
        return prepared

    def _collate_part(self, samples: Sequence[Any]) -> dict[str, Any]:
        part, counts = own_part(samples)
        return {**self.data_collator(list(part)), "counts": torch.tensor(counts)}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **named: Any
    ) -> Any:
        """Return the loss, weighted so that the mean over processes is the whole batch's."""
        if process()[1] == 1:
            return super().compute_loss(model, inputs, *arguments, **named)
        weight = share(inputs, bool(inputs.pop("counts")))
        return super().compute_loss(model, inputs, *arguments, **named) * weight.float()


def _trainer(
    model: nn.Module,
    trunk: Trunk,
    arguments: TrainingArguments,
    callbacks: list[TrainerCallback],
    whole: bool = False,
) -> Trainer:
    """Return Hugging Face's Trainer over the trunk."""
    trainer = SharedTrainer(
        model=model,
        args=arguments,
        train_dataset=trunk,
        data_collator=trunk.collate,
        callbacks=callbacks,
    )
    trainer.whole = whole
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(recipe: Training, run: Run, scratch: Path, device: str) -> TrainingArguments:
    """Return the paper's recipe (Table 14) in Trainer's words."""
    assert run.seed is not None, "train_run lets no run without a seed come here"
    return TrainingArguments(
        output_dir=str(scratch / "trainer"),
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        num_train_epochs=run.epochs or recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.scheduler,
        warmup_steps=recipe.warmup_ratio,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        train_sampling_strategy="group_by_length" if recipe.group_by_length else "random",
        optim="adamw_torch",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=False,
        seed=run.seed,
        data_seed=run.seed,
        use_cpu=device == "cpu",
        ddp_backend="gloo" if device == "cpu" and process()[1] > 1 else None,
        ddp_find_unused_parameters=False,
    )


def _require_same_backbone(
    expected: str, path: Path, inputs: Mapping[str, Any], stage: str
) -> None:
    if inputs.get("backbone") != expected:
        raise GapinitError(
            f"{path}: made from another backbone's weights. Delete it and run `gapinit {stage}` "
            "again."
        )


def _require_first_layer(layers: Sequence[int], trunk: Path, cached: Trunk) -> None:
    if cached.first_layer > min(layers):
        raise GapinitError(
            f"{trunk}: starts at layer {cached.first_layer}, but layer {min(layers)} is adapted. "
            "Run `gapinit trunk` with this run's layers."
        )
