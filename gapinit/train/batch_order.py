"""In which order a run sees its samples: that of Hugging Face's Trainer with the run's seed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer

from gapinit.train.processes import own_part, process
from gapinit.train.trainer_arguments import training_arguments

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gapinit.config.configuration import Training
    from gapinit.config.runs import Run
    from gapinit.train.trunk.write import Trunk

Batches = list["NDArray[np.int64]"]
"""The samples of each batch of an epoch."""


class Order:
    """The batches of one run, epoch by epoch, drawn before anything is trained.

    They depend on the run's seed and on the data alone: neither on what else the process draws nor
    on the runs that are trained beside it.
    """

    def __init__(self, trunk: Trunk, recipe: Training, run: Run, device: str) -> None:
        self.trunk = trunk
        self.recipe = recipe
        devices = [device] if device.startswith("cuda") else []
        with torch.random.fork_rng(devices), tempfile.TemporaryDirectory() as scratch:
            arguments = training_arguments(recipe, run, Path(scratch), device)
            trainer = _WholeBatches(
                model=nn.Linear(1, 1),
                args=arguments,
                train_dataset=trunk,
                data_collator=_indices,
            )
            trainer.remove_callback(PrinterCallback)
            loader: Any = trainer.get_train_dataloader()
            self.epochs: list[Batches] = []
            for epoch in range(int(arguments.num_train_epochs)):
                if hasattr(loader, "set_epoch"):
                    loader.set_epoch(epoch)
                self.epochs.append([batch["index"].cpu().numpy() for batch in loader])

    def first(self, samples: int) -> list[dict[str, Tensor]]:
        """Return as many batches as hold `samples` samples, or all of the first epoch."""
        count = -(-samples // self.recipe.batch_size)
        return [read_batch(self.trunk, [indices]) for indices in self.epochs[0][:count]]


class Orders(Dataset[list[Any]]):
    """The batches of several runs that are trained together: item i, those of step i."""

    def __init__(self, trunk: Trunk, orders: Sequence[Order]) -> None:
        self.epoch = 0
        """Which epoch's batches are read."""
        self._trunk = trunk
        self._orders = orders

    def __len__(self) -> int:
        return len(self._orders[0].epochs[0])

    def __getitem__(self, index: int) -> list[Any]:
        return [order.epochs[self.epoch][index] for order in self._orders]

    def collate(self, items: Sequence[list[Any]]) -> dict[str, Any]:
        """Return the batches of one step as one, run after run, padded to the widest.

        Where several processes train, those are this one's parts, and `counts` says whether they
        do. The runs' batches are of one size, so either all count or none.
        """
        if process()[1] == 1:
            return read_batch(self._trunk, items[0])
        parts = [own_part(batch) for batch in items[0]]
        batch = read_batch(self._trunk, [part for part, _ in parts])
        return {**batch, "counts": parts[0][1]}


class _WholeBatches(Trainer):
    """Trainer that every one of several processes gets the batches from that one alone gets."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches, not divided among processes."""
        if process()[1] == 1:
            return super().get_train_dataloader()
        trunk: Any = self.train_dataset
        loader: DataLoader[Any] = DataLoader(
            trunk,
            batch_size=self.args.train_batch_size,
            sampler=self._get_train_sampler(),
            collate_fn=self.data_collator,
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


def read_batch(trunk: Trunk, batches: Sequence[NDArray[np.int64]]) -> dict[str, Tensor]:
    """Return the samples of some batches, one batch after another, as one batch."""
    return trunk.collate([trunk[int(index)] for batch in batches for index in batch])


def _indices(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    return {"index": torch.tensor([item["index"] for item in items])}
