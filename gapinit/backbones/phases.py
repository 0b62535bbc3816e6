"""Pretraining phase by phase: what a finished phase has learned is kept until all are done.

A phase begins with the weights and the random state that the one before left, and nothing else, so
a pretraining that was killed goes on behind its last finished phase and ends in the same weights.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gapinit.artifacts.artifacts import atomic_folder
from gapinit.artifacts.checkpoints import checkpoints_of, seal, sealed

_TENSORS = "weights.safetensors"
_RANDOM = "random_state"


def run_phases(
    model: nn.Module, phases: Sequence[Callable[[], None]], output: Path, identity: str
) -> None:
    """Run the phases that are not done yet, each on the weights that the one before left.

    `identity`: of settings and data; what another pretraining left beside `output` is not read.
    """
    kept = checkpoints_of(output, identity)
    done = _newest(kept, identity, len(phases))
    if done:
        _load(model, kept / str(done))
        print(f"{kept}: goes on behind phase {done} of {len(phases)}", file=sys.stderr, flush=True)
    for number, phase in enumerate(phases[done:], done + 1):
        phase()
        if number < len(phases):
            _keep(model, kept / str(number), identity)
            shutil.rmtree(kept / str(number - 1), ignore_errors=True)


def _newest(kept: Path, identity: str, count: int) -> int:
    """Return the last phase that is kept whole; 0: none is."""
    return max((it for it in range(1, count) if sealed(kept / str(it), identity)), default=0)


def _keep(model: nn.Module, place: Path, identity: str) -> None:
    tensors = {name: value.detach().clone() for name, value in model.named_parameters()}
    with atomic_folder(place) as folder:
        save_file({**tensors, _RANDOM: torch.get_rng_state()}, folder / _TENSORS)
        seal(folder, identity)


def _load(model: nn.Module, place: Path) -> None:
    tensors = load_file(place / _TENSORS)
    torch.set_rng_state(tensors[_RANDOM])
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(tensors[name])
