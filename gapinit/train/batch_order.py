"""The sample order of a run: that of Hugging Face's Trainer with the run's seed."""

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
    """The batches of one run, drawn before training: item i is batch i of the current epoch.

    They depend only on the run's seed and the data, not on other random draws of the process.
    """

    def __init__(self, trunk: Trunk, arguments: TrainingArguments) -> None:
        self.epoch = 0
        """The current epoch."""
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
            """Sample indices by epoch and batch."""
            for epoch in range(int(arguments.num_train_epochs)):
                if hasattr(loader, "set_epoch"):
                    loader.set_epoch(epoch)
                self._epochs.append([batch["index"].tolist() for batch in loader])

    def __len__(self) -> int:
        return len(self._epochs[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._trunk.batch(self._epochs[self.epoch][index])

    def first(self, samples: int) -> list[dict[str, Tensor]]:
        """Return the fewest batches with `samples` samples, at most those of the first epoch."""
        count = -(-samples // self._batch_size)
        return [self._trunk.batch(indices) for indices in self._epochs[0][:count]]


def _indices(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    return {"index": torch.tensor([item["index"] for item in items])}
