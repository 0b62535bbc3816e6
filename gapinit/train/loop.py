"""The training loop: Hugging Face's Trainer over the batches of one run or several.

Each run has its own loss, gradient norm and clipping, log, and state of AdamW, which is
elementwise. A checkpoint holds all of it in safetensors and JSON: nothing that is ever read back
can run code, as a pickle could.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
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
from gapinit.train.batch_order import Orders
from gapinit.train.processes import (
    from_all_processes,
    is_main,
    mean_over_processes,
    process,
    shares,
)
from gapinit.train.step_log import StepLog, require_one_left
from gapinit.train.tail_module import Tail

TRAINER_STATE = "trainer_state.json"
_TENSORS, _RECORD = "state.safetensors", "state.json"
_PREFIX = "checkpoint-"

Columns = Callable[[], Sequence[Mapping[str, Tensor]]]
"""Returns the first column of B by module, for each run."""


class RunsTrainer(Trainer):
    """Trainer for runs that are in one model, each with what would be its own alone."""

    def __init__(
        self,
        tail: Tail,
        orders: Orders,
        logs: list[StepLog],
        columns: Columns,
        arguments: TrainingArguments,
        *,
        generators: Sequence[torch.Generator],
        checkpoints: Path,
        identity: str,
    ) -> None:
        """`checkpoints`: where they are written; `identity`: of what is trained, and from what."""
        self.logs = logs
        self.tail = tail
        self.losses = torch.zeros(len(logs), device=arguments.device)
        """(runs,): of the step so far."""
        self.norms = torch.zeros(len(logs))
        """(runs,): of the step's gradients, before clipping."""
        self._orders = orders
        self._generators = generators
        self._checkpoints = checkpoints
        self._identity = identity
        watch = _Watch(self, columns)
        super().__init__(
            model=tail,
            args=arguments,
            train_dataset=orders,
            data_collator=orders.collate,
            callbacks=[watch],
        )
        self.remove_callback(PrinterCallback)

    def run(self) -> None:
        """Train to the end, from the last checkpoint of the same training if there is one."""
        found = newest_checkpoint(self._checkpoints, self._identity)
        if found is not None and is_main():
            step = found.name.removeprefix(_PREFIX)
            print(f"{found.parent}: goes on from step {step}", file=sys.stderr, flush=True)
        self.train(resume_from_checkpoint=None if found is None else str(found))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches in the runs' own order, which is drawn already."""
        return DataLoader(self._orders, batch_size=1, collate_fn=self._orders.collate)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device, with what its runs' parts count where processes divide it."""
        counts = inputs.pop("counts", None)
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        if counts is not None:
            prepared["share"] = shares(prepared, len(self.logs), counts)
        return prepared

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        """Run a batch forward and backward, and keep each run's share of the loss."""
        loss: Tensor = super().training_step(*arguments, **named)
        self.losses += self.tail.losses / self.current_gradient_accumulation_steps
        return loss

    def _clip_grad_norm(self, model: Any) -> Tensor:
        """Clip each run's gradient by its own norm; return the norm over all of them."""
        gradients = self.tail.gradients()
        each = torch.stack([torch.linalg.vector_norm(one.flatten(1), dim=1) for one in gradients])
        self.norms = torch.linalg.vector_norm(each, dim=0)
        factors = (self.args.max_grad_norm / (self.norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
        return torch.linalg.vector_norm(self.norms)

    # Checkpoints --------------------------------------------------------------------------------

    def _learned(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.tail.named_parameters() if value.requires_grad}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write what the next step depends on; only the newest checkpoint is kept.

        All processes have the same weights; what is their own is the state of their dropout.
        """
        step = self.state.global_step
        if step >= self.state.max_steps:
            return
        generators = [from_all_processes(one.get_state()) for one in self._generators]
        if not is_main():
            return
        optimiser, scheduler = self.optimizer, self.lr_scheduler
        assert optimiser is not None and scheduler is not None, "there has been a step"
        tensors = {f"weight.{name}": value for name, value in self._learned().items()}
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"adamw.{index}.{name}": value for name, value in state.items()}
        for run, states in enumerate(generators):
            tensors |= {_generator(run, rank): state for rank, state in enumerate(states)}
        record = {
            "scheduler": scheduler.state_dict(),
            "rates": [group["lr"] for group in optimiser.param_groups],
            "rows": [log.rows for log in self.logs],
            "failed": [log.failed for log in self.logs],
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
        """Put back the weights, the logs and the state of the runs' dropout."""
        tensors = load_file(Path(resume_from_checkpoint) / _TENSORS)
        record = read_json(Path(resume_from_checkpoint) / _RECORD)
        with torch.no_grad():
            for name, value in self._learned().items():
                value.copy_(tensors[f"weight.{name}"])
        for run, generator in enumerate(self._generators):
            generator.set_state(tensors[_generator(run, process()[0])])
        for log, rows, failed in zip(self.logs, record["rows"], record["failed"], strict=True):
            log.rows, log.failed = rows, failed

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Put back the state of AdamW and of the learning rate's schedule."""
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
        content = optimiser.state_dict()
        for group, rate in zip(content["param_groups"], record["rates"], strict=True):
            group["lr"] = rate
        optimiser.load_state_dict(content | {"state": states})
        scheduler.load_state_dict(record["scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Do nothing: no loss is scaled, and Trainer's own file of it would be a pickle."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Do nothing: a step draws from the runs' own generators alone."""


class _Watch(TrainerCallback):
    """Keeps the logs of the runs, and reads each epoch's own batches."""

    def __init__(self, trainer: RunsTrainer, columns: Columns) -> None:
        self._trainer = trainer
        self._columns = columns

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._trainer._orders.epoch = int(state.epoch or 0)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._trainer.losses.zero_()
        for log, columns in zip(self._trainer.logs, self._columns(), strict=True):
            log.measure(columns)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Keep the step's rows: the learning rate is still the one of this step."""
        rate = float(more["optimizer"].param_groups[0]["lr"])
        losses = mean_over_processes(self._trainer.losses).tolist()
        norms = self._trainer.norms.tolist()
        for log, loss, norm in zip(self._trainer.logs, losses, norms, strict=True):
            log.add(state.global_step + 1, loss, norm, rate)
        require_one_left(self._trainer.logs)


def _generator(run: int, rank: int) -> str:
    """Return the name of a run's generator of dropout masks on one of its processes."""
    return f"generator.{run}.{rank}" if rank else f"generator.{run}"


def newest_checkpoint(folder: Path, identity: str) -> Path | None:
    """Return the last checkpoint of this very training that is whole; None: there is none."""
    numbered = []
    for path in folder.glob(f"{_PREFIX}*"):
        number = path.name.removeprefix(_PREFIX)
        if number.isdecimal() and sealed(path, identity):
            numbered.append((int(number), path))
    return max(numbered)[1] if numbered else None
