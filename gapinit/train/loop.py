"""The training loop of one run: Hugging Face's Trainer with batches, step log and checkpoints.

A checkpoint holds the state that the next step depends on, in safetensors and JSON. Neither can
run code on loading, as a pickle can.
"""

from __future__ import annotations

import shutil
import sys
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from gapinit.artifacts.artifacts import atomic_folder, read_json, write_json
from gapinit.artifacts.checkpoints import seal, sealed
from gapinit.train.batch_order import Order
from gapinit.train.step_log import StepLog
from gapinit.train.tail_module import Tail

TRAINER_STATE = "trainer_state.json"
_TENSORS, _RECORD = "state.safetensors", "state.json"
_PREFIX = "checkpoint-"


class RunTrainer(Trainer):
    """Trainer for one run, with checkpoints in formats that hold data only."""

    def __init__(
        self,
        tail: Tail,
        order: Order,
        log: StepLog,
        arguments: TrainingArguments,
        *,
        generator: torch.Generator,
        checkpoints: Path,
        identity: str,
    ) -> None:
        """`generator`: for dropout; `checkpoints`: folder; `identity`: the training's digest."""
        self._order = order
        self._log = log
        self._generator = generator
        self._checkpoints = checkpoints
        self._identity = identity
        super().__init__(
            model=tail, args=arguments, train_dataset=order, callbacks=[_Watch(order, log)]
        )
        self.remove_callback(PrinterCallback)

    def run(self) -> None:
        """Train to the end; resume from the last checkpoint of the same training if one exists."""
        found = newest_checkpoint(self._checkpoints, self._identity)
        if found is not None:
            step = found.name.removeprefix(_PREFIX)
            print(f"{found.parent}: resuming from step {step}", file=sys.stderr, flush=True)
        self.train(resume_from_checkpoint=None if found is None else str(found))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the run's batches in the order drawn before."""
        return DataLoader(self._order, batch_size=1, collate_fn=itemgetter(0))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add a step to the step log; ignore Trainer's summary at the end."""
        if "loss" in logs:
            self._log.add(
                self.state.global_step, logs["loss"], logs["grad_norm"], logs["learning_rate"]
            )

    # Checkpoints --------------------------------------------------------------------------------

    def _learned(self) -> dict[str, Tensor]:
        assert isinstance(self.model, Tail), "RunTrainer was given a Tail"
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint and delete the older one."""
        step = self.state.global_step
        if step >= self.state.max_steps:
            return
        optimiser, scheduler = self.optimizer, self.lr_scheduler
        assert optimiser is not None and scheduler is not None, "a step was made"
        tensors = {f"weight.{name}": value for name, value in self._learned().items()}
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"adamw.{index}.{name}": value for name, value in state.items()}
        tensors["generator"] = self._generator.get_state()
        record = {
            "scheduler": scheduler.state_dict(),
            "groups": optimiser.state_dict()["param_groups"],
            "rows": self._log.rows,
        }
        with atomic_folder(self._checkpoints / f"{_PREFIX}{step}") as folder:
            copies = {name: value.detach().cpu().clone() for name, value in tensors.items()}
            save_file(copies, folder / _TENSORS)
            write_json(folder / _RECORD, record)
            self.state.save_to_json(str(folder / TRAINER_STATE))
            seal(folder, self._identity)
        for older in self._checkpoints.glob(f"{_PREFIX}*"):
            if older.name != f"{_PREFIX}{step}":
                shutil.rmtree(older)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Restore the weights, the step log and the dropout generator."""
        tensors = load_file(Path(resume_from_checkpoint) / _TENSORS)
        with torch.no_grad():
            for name, value in self._learned().items():
                value.copy_(tensors[f"weight.{name}"])
        self._generator.set_state(tensors["generator"])
        self._log.rows = read_json(Path(resume_from_checkpoint) / _RECORD)["rows"]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore the state of AdamW and of the learning rate schedule."""
        if checkpoint is None:
            return
        optimiser, scheduler = self.optimizer, self.lr_scheduler
        assert optimiser is not None and scheduler is not None, "Trainer has made both"
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in load_file(Path(checkpoint) / _TENSORS).items():
            kind, _, rest = name.partition(".")
            if kind == "adamw":
                index, _, key = rest.partition(".")
                states.setdefault(int(index), {})[key] = value
        record = read_json(Path(checkpoint) / _RECORD)
        optimiser.load_state_dict({"state": states, "param_groups": record["groups"]})
        scheduler.load_state_dict(record["scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Do nothing: the loss is not scaled, and Trainer's scaler file would be a pickle."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Do nothing: a step draws only from the run's own generator."""


class _Watch(TrainerCallback):
    """Select each epoch's batches, and measure the alignment before each step's update."""

    def __init__(self, order: Order, log: StepLog) -> None:
        self._order = order
        self._log = log

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._order.epoch = int(state.epoch or 0)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._log.measure()


def newest_checkpoint(folder: Path, identity: str) -> Path | None:
    """Return the last valid checkpoint of the training `identity`, or None."""
    numbered = []
    for path in folder.glob(f"{_PREFIX}*"):
        number = path.name.removeprefix(_PREFIX)
        if number.isdecimal() and sealed(path, identity):
            numbered.append((int(number), path))
    return max(numbered)[1] if numbered else None
