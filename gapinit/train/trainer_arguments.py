"""Arguments of Hugging Face's Trainer for a training recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainingArguments

if TYPE_CHECKING:
    from gapinit.config.recipe import Recipe
    from gapinit.config.runs import Run


def training_arguments(recipe: Recipe, run: Run, scratch: Path, device: str) -> TrainingArguments:
    """Return Trainer's arguments for a run (paper, Table 14); `scratch`: folder of its files."""
    assert run.seed is not None, "trained runs have a seed"
    return TrainingArguments(
        output_dir=str(scratch / "trainer"),
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        num_train_epochs=recipe.epochs,
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
        save_strategy="steps" if recipe.checkpoint_steps else "no",
        save_steps=recipe.checkpoint_steps or 1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=False,
        seed=run.seed,
        data_seed=run.seed,
        use_cpu=device == "cpu",
    )
