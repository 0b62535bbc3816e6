"""One training run on several processes: `accelerate launch`, and each process's part of a batch.

Every process draws the batches of the run on one process, in that order, and takes every N-th
sample of each. The loss of a batch is the mean over its labelled positions, wherever they are:
with n_r of them on process r, process r's mean counts N · n_r / Σ n, and the mean over processes,
which is what gradients and the log are, is Σ n_r · loss_r / Σ n.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gapinit.errors import GapinitError

LAUNCHED = "GAPINIT_PROCESSES"
"""In the environment of the processes: how many there must be."""


def process() -> tuple[int, int]:
    """Return this process's number and how many train the run together: (0, 1) for one alone."""
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    asked = os.environ.get(LAUNCHED, str(processes))
    if asked != str(processes):
        raise GapinitError(f"{asked} processes were asked for and {processes} were started")
    return rank, processes


def require_divisible(batch_size: int, processes: int) -> None:
    """Raise GapinitError if a batch cannot be dealt out evenly."""
    if batch_size % processes:
        raise GapinitError(
            f"--num-processes {processes}: a batch of {batch_size} (--batch-size) cannot be "
            "divided among them evenly. Take a number that divides it."
        )


def launch(arguments: Sequence[str], processes: int, device: str) -> None:
    """Run `gapinit` with `arguments` in several processes; raise GapinitError if one fails.

    On GPUs it claims as many for all of them (`gapinit.gpu_pool`) unless the device is named.
    """
    if device == "auto":
        from gapinit.gpu_pool import has_nvidia, take_gpus, visible_devices

        gpus = has_nvidia() and len(visible_devices()) > 0
        if gpus:
            take_gpus(processes)
        device = "cuda" if gpus else "cpu"
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0", "--num_cpu_threads_per_process", str(_threads(processes)),
        # On CPUs too: with --cpu it starts one process alone unless there is MPI.
        "--multi_gpu", "--module", "gapinit", *arguments, "--device", device,
    ]  # fmt: skip
    environment = {**os.environ, LAUNCHED: str(processes)}
    if device == "cpu":
        environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        raise GapinitError(f"a process of `accelerate launch` failed (status {done.returncode})")


def _threads(processes: int) -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() else max(1, (os.cpu_count() or 1) // processes)


def own_part(samples: Sequence[Any]) -> tuple[Sequence[Any], bool]:
    """Return this process's samples of a batch, and whether they count.

    A last batch may be smaller than the number of processes: one without a sample computes the
    first and counts it with zero, since all must take part.
    """
    rank, processes = process()
    part = samples[rank::processes]
    return (part, True) if part else (samples[:1], False)


def share(batch: Mapping[str, Any], counts: bool) -> Any:
    """Return what this process's mean loss is multiplied by, N · n_r / Σ n."""
    import torch.distributed as distributed

    own = (batch["labels"] != -100).sum().double() * counts
    total = own.clone()
    distributed.all_reduce(total)
    return own * process()[1] / total
