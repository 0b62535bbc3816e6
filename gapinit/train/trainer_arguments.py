"""The recipe of a training in the words of Hugging Face's Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from gapinit.train.processes import process

if TYPE_CHECKING:
    from gapinit.config.configuration import Training
    from gapinit.config.runs import Run


def training_arguments(
    recipe: Training, run: Run, scratch: Path, device: str, **changes: Any
) -> TrainingArguments:
    """Return the paper's recipe (Table 14) in Trainer's words."""
    assert run.seed is not None, "no run without a seed is trained"
    given: dict[str, Any] = {
        "output_dir": str(scratch / "trainer"),
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "num_train_epochs": run.epochs or recipe.epochs,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.scheduler,
        "warmup_steps": recipe.warmup_ratio,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "train_sampling_strategy": "group_by_length" if recipe.group_by_length else "random",
        "optim": "adamw_torch",
        # The step log keeps what Trainer would log, of each run.
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_drop_last": False,
        "seed": run.seed,
        "data_seed": run.seed,
        "use_cpu": device == "cpu",
        "ddp_backend": "gloo" if device == "cpu" and process()[1] > 1 else None,
        "ddp_find_unused_parameters": False,
    }
    return TrainingArguments(**given | changes)
