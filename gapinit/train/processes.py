"""Each process's part of a training that several processes share.

Every process draws the batches of a run in one order and takes every N-th sample of each. The loss
of a batch is the mean over its labelled positions, wherever they are: with n_r of them on process
r, that one's mean counts N · n_r / Σ n, and the mean over processes, which is what gradients and
the log are, is Σ n_r · loss_r / Σ n. So losses and gradients are those of one process on the whole
batch, whatever the lengths of the texts; only dropout draws other masks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from gapinit.errors import GapinitError
from gapinit.train.launch import LAUNCHED


def process() -> tuple[int, int]:
    """Return this process's number and how many train together: (0, 1) for one alone."""
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    asked = os.environ.get(LAUNCHED)
    if asked is None:  # not ours: a scheduler's or a notebook's variables mean nothing here
        return 0, 1
    if asked != str(processes):
        raise GapinitError(
            f"{asked} processes were asked for and {processes} were started: expected "
            "`accelerate launch` to start as many. Its configuration must not say another number."
        )
    return rank, processes


def is_main() -> bool:
    """Return whether this process is the one that writes files."""
    return process()[0] == 0


def own_device(device: str) -> str:
    """Return the device of this process: of several on GPUs each has its own."""
    if process()[1] == 1 or device != "cuda":
        return device
    name = f"cuda:{os.environ['LOCAL_RANK']}"
    torch.cuda.set_device(name)
    return name


def own_part(samples: Any) -> tuple[Any, bool]:
    """Return this process's samples of a batch, and whether they count.

    A last batch may be smaller than the number of processes: one without a sample computes the
    first and counts it with zero, since all must take part.
    """
    rank, processes = process()
    part = samples[rank::processes]
    return (part, True) if len(part) else (samples[:1], False)


def shares(batch: Mapping[str, Any], runs: int, counts: bool) -> Tensor:
    """Return what this process's mean loss of each run is multiplied by, N · n_r / Σ n, (runs,)."""
    labelled = batch["labels"] != -100
    own = labelled.view(runs, -1).sum(1).double() * counts
    total = own.clone()
    distributed.all_reduce(total)
    return (own * process()[1] / total).float()


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean of what the processes have; of one alone, what it has."""
    processes = process()[1]
    if processes == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / processes


def from_all_processes(state: Tensor) -> list[Tensor]:
    """Return a CPU tensor of every process, in their order; all of them have to call this."""
    processes = process()[1]
    if processes == 1:
        return [state]
    place = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    own = state.to(place)
    found = [torch.empty_like(own) for _ in range(processes)]
    distributed.all_gather(found, own)
    return [one.cpu() for one in found]


def leave_group() -> None:
    """End the communication of the processes, if there is any."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
