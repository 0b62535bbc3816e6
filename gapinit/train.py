"""Stage `train`: one run's adapter, trained by Hugging Face Trainer on the cached trunk.

The tail is the backbone's own decoder above the frozen part, fed with cached states. Loss and
gradients are those of the whole model; only the work that no run changes is left out.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from gapinit.adapters import alignment, module_directions, save_adapter
from gapinit.artifacts import atomic_folder, package_versions, read_json, sha256, write_json
from gapinit.backbones import load_backbone
from gapinit.config import Lora, Training
from gapinit.errors import GapinitError
from gapinit.gap import read_gap
from gapinit.methods.setup import Adapted, Setup, adapt
from gapinit.runs import Run
from gapinit.states import backbone_digest
from gapinit.trunk import Trunk, read_trunk

if TYPE_CHECKING:
    from peft import PeftModel

    from gapinit.backbones.blip2 import Blip2Backbone

STEP_COLUMNS = ("step", "loss", "grad_norm", "learning_rate", "alignment")


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
    _require_same_backbone(backbone_digest(backbone), trunk, cached)
    _require_first_layer(chosen, trunk, cached)
    set_seed(run.seed)
    model = load_backbone(backbone, device)
    model.cut_below(cached.first_layer) if cached.text is not None else model.drop_vision()
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
        _fit(Tail(adapted.model, model), cached, recipe, run, log, Path(scratch))
        save_adapter(
            adapted.model, folder / "adapter", before if adapted.changes_base else None
        )
        log.write(folder / "steps.csv")
        write_json(
            folder / "run.json",
            {
                "factors": run.factors,
                "recipe": {**recipe.model_dump(), **lora.model_dump(), "alpha": setup.alpha},
                "layers": chosen,
                "trainable_parameters": sum(
                    parameter.numel()
                    for parameter in adapted.model.parameters()
                    if parameter.requires_grad
                ),
                "first_grad_norm": log.rows[0]["grad_norm"],
                "final_loss": log.mean_of_last(0.1),
                "alignment_at_init": at_init,
                "noise_cosine": adapted.noise_cosine,
                "inputs": {
                    "backbone": backbone_digest(backbone),
                    "trunk": cached.inputs,
                    "layers": sha256(layers),
                    "gap": sha256(gap),
                },
                "versions": package_versions(),
                "seconds": time.monotonic() - started,
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "threads": torch.get_num_threads(),
                "command": sys.argv[1:],
            },
        )


class Tail(nn.Module):
    """The trained part of a backbone as Trainer wants it: a batch in, a loss out."""

    def __init__(self, model: PeftModel, backbone: Blip2Backbone) -> None:
        super().__init__()
        self.model = model
        self._backbone = (backbone,)  # in a tuple: not a second owner of the parameters

    def train(self, mode: bool = True) -> Tail:
        """Switch the adapters' dropout only: frozen layers always run without."""
        super().train(False)
        for name, module in self.model.named_modules():
            if "lora_dropout" in name:
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


class StepLog(TrainerCallback):
    """Keep loss, gradient norm, learning rate and the alignment of B with the gap, step by step.

    A step's row is what that step saw: loss, gradient and alignment before its update.
    """

    def __init__(self, model: PeftModel, directions: dict[str, Tensor]) -> None:
        self.rows: list[dict[str, float]] = []
        self._model = model
        self._directions = directions
        self._alignment = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Measure the alignment before the update: the mean of |cos| over modules."""
        cosines = alignment(self._model, self._directions)
        self._alignment = sum(abs(cosine) for cosine in cosines) / len(cosines)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Keep the step's row; a loss that is not finite ends the run."""
        if not logs or "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), float(logs["grad_norm"])
        if not (torch.isfinite(torch.tensor([loss, norm])).all()):
            raise GapinitError(
                f"the loss ({loss}) or its gradient ({norm}) is not finite at step "
                f"{state.global_step}: lower training.learning_rate"
            )
        self.rows.append(
            {
                "step": state.global_step,
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": float(logs["learning_rate"]),
                "alignment": self._alignment,
            }
        )

    def mean_of_last(self, share: float) -> float:
        """Return the mean loss of the last part of the run."""
        last = self.rows[-max(1, round(share * len(self.rows))) :]
        return sum(row["loss"] for row in last) / len(last)

    def write(self, path: Path) -> None:
        """Write the log as CSV, one line a step."""
        lines = [",".join(STEP_COLUMNS)]
        lines += [",".join(repr(row[column]) for column in STEP_COLUMNS) for row in self.rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _fit(
    tail: Tail, trunk: Trunk, recipe: Training, run: Run, log: StepLog, scratch: Path
) -> None:
    """Run Hugging Face Trainer over the trunk with the paper's recipe (Table 14)."""
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
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=tail,
        args=arguments,
        train_dataset=trunk,
        data_collator=trunk.batch,
        callbacks=[log],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _require_same_backbone(found: str, trunk: Path, cached: Trunk) -> None:
    if cached.inputs["backbone"] != found:
        raise GapinitError(
            f"{trunk}: made from another backbone's weights. Delete it and run `gapinit trunk` again."
        )


def _require_first_layer(layers: Sequence[int], trunk: Path, cached: Trunk) -> None:
    if cached.first_layer > min(layers):
        raise GapinitError(
            f"{trunk}: starts at layer {cached.first_layer}, but layer {min(layers)} is adapted. "
            "Run `gapinit trunk` with this run's layers."
        )
