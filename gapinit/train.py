"""Stage `train`: one run's adapter, trained by Hugging Face Trainer on the cached trunk.

The tail is the backbone's own decoder above the frozen part, fed with cached states. Loss and
gradients are those of the whole model; only the work that no run changes is left out.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from gapinit.adapters import alignment, module_directions, save_adapter
from gapinit.artifacts import atomic_folder, package_versions, read_json, sha256, write_json
from gapinit.backbones import load_backbone
from gapinit.config import Lora, Training
from gapinit.errors import GapinitError
from gapinit.gap_file import read_gap
from gapinit.methods.setup import Adapted, Setup, adapt
from gapinit.runs import Run
from gapinit.states import backbone_digest
from gapinit.step_log import StepLog
from gapinit.trunk import Trunk, read_trunk

if TYPE_CHECKING:
    from peft import PeftModel

    from gapinit.backbones.blip2 import Blip2Backbone


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
    setup = Setup(
        backbone=model,
        layers=chosen,
        rank=run.rank,
        alpha=lora.alpha_per_rank * run.rank,
        dropout=lora.dropout,
        gap=torch.from_numpy(directions.gap),
        noise=run.noise,
        noise_scale=run.noise_scale or "unit",
        generator=torch.Generator().manual_seed(run.seed),
    )
    adapted = adapt(run.method, setup)
    own = module_directions(adapted.model, setup.gap)
    heldout = directions.heldout_gap if directions.heldout_gap is not None else directions.gap
    check = module_directions(adapted.model, torch.from_numpy(heldout))
    at_init = alignment(adapted.model, check)
    with atomic_folder(output) as folder, tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch) / "before-training"
        if adapted.changes_base:
            save_adapter(adapted.model, before)
        log = StepLog(adapted.model, own)
        _fit(Tail(adapted.model, model), cached, recipe, run, log, Path(scratch), device)
        save_adapter(adapted.model, folder / "adapter", before if adapted.changes_base else None)
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
            "inputs": inputs,
            "seconds": time.monotonic() - started,
        }
        write_json(folder / "run.json", record)


def _record(run: Run, adapted: Adapted, log: StepLog) -> dict[str, Any]:
    """Return what `run.json` says of the run itself and of the process that trained it."""
    parameters = adapted.model.parameters()
    return {
        "factors": run.factors,
        "trainable_parameters": sum(value.numel() for value in parameters if value.requires_grad),
        "first_grad_norm": log.rows[0]["grad_norm"],
        "final_loss": log.mean_of_last(0.1),
        "noise_cosine": adapted.noise_cosine,
        "versions": package_versions(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
        "command": sys.argv[1:],
    }


class Tail(nn.Module):
    """The trained part of a backbone as Trainer wants it: a batch in, a loss out."""

    def __init__(self, model: PeftModel, backbone: Blip2Backbone) -> None:
        super().__init__()
        self.model = model
        # In tuples: not a second owner of the parameters.
        self._backbone = (backbone,)
        self._dropouts = tuple(
            module for name, module in model.named_modules() if "lora_dropout" in name
        )
        super().train(False)

    def train(self, mode: bool = True) -> Tail:
        """Switch the adapters' dropout only: frozen layers always run without.

        Trainer calls this at every step, so the modules are looked up once.
        """
        for module in self._dropouts:
            module.train(mode)
        return self

    def forward(
        self,
        prefix: Tensor,
        labels: Tensor,
        text: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the mean cross-entropy over the labelled positions (-100: none).

        Positions without a label never reach the output matrix.
        """
        backbone = self._backbone[0]
        if text is not None:
            inputs = torch.cat([prefix, text], dim=1)
        elif input_ids is not None:
            inputs = backbone.embed(prefix, input_ids)
        else:
            raise ValueError("a batch needs text states or input_ids")
        states = backbone.decode(inputs)[:, prefix.shape[1] :]
        labelled = labels != -100
        logits = backbone.output_head(states[labelled])
        return {"loss": nn.functional.cross_entropy(logits.float(), labels[labelled])}


def _fit(
    tail: Tail,
    trunk: Trunk,
    recipe: Training,
    run: Run,
    log: StepLog,
    scratch: Path,
    device: str,
) -> None:
    """Run Hugging Face Trainer over the trunk with the paper's recipe (Table 14)."""
    assert run.seed is not None, "train_run lets no run without a seed come here"
    arguments = TrainingArguments(
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
    )
    trainer = Trainer(
        model=tail,
        args=arguments,
        train_dataset=trunk,
        data_collator=trunk.collate,
        callbacks=[log],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


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
