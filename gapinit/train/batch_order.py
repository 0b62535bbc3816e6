"""The order of a run's samples: the order of Hugging Face's Trainer with the run's seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

if TYPE_CHECKING:
    from gapinit.train.trunk.read import Trunk


class Order(Dataset[dict[str, Any]]):
    """The batches of one run, epoch by epoch, drawn before anything is trained: item i is batch i.

    They depend on the run's seed and on the data alone, not on what else the process draws.
    """

    def __init__(self, trunk: Trunk, arguments: TrainingArguments) -> None:
        self.epoch = 0
        """The epoch whose batches are read."""
        self._trunk = trunk
        self._batch_size = arguments.train_batch_size
        devices = [arguments.device] if arguments.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            trainer = Trainer(
                model=nn.Linear(1, 1),
                args=arguments,
                train_dataset=trunk,
                data_collator=_indices,
            )
            loader: Any = trainer.get_train_dataloader()
            self._epochs: list[list[list[int]]] = []
            """The samples of each batch of an epoch."""
            for epoch in range(int(arguments.num_train_epochs)):
                if hasattr(loader, "set_epoch"):
                    loader.set_epoch(epoch)
                self._epochs.append([batch["index"].tolist() for batch in loader])

    def __len__(self) -> int:
        return len(self._epochs[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._trunk.batch(self._epochs[self.epoch][index])

    def first(self, samples: int) -> list[dict[str, Tensor]]:
        """Return as many batches as hold `samples` samples, or all of the first epoch."""
        count = -(-samples // self._batch_size)
        return [self._trunk.batch(indices) for indices in self._epochs[0][:count]]


def _indices(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    return {"index": torch.tensor([item["index"] for item in items])}
