"""Several adapters in one pass: runs of one method and rank on the same frozen weights.

The batches of K runs are concatenated. A frozen matrix W0 is applied to all of them at once, and
each run's slice gets its own (alpha / r) B_k A_k. The loss is the sum of the runs' own mean losses,
so no run's gradient holds anything of another's.

What is saved is reading W0, the calls into the model and the optimiser's. That counts where a step
is made of calls: three runs on one CPU thread were 1.14 times as fast at a width of 32
(`benchmarks/stacked_runs.py`; 1.26 on an earlier day). At a width of 128 a step is matrix products,
K times as many for K runs: 0.99 times, for K times the memory of activations. Runs are then trained
one after another and share the process: imports, trunk and, on a GPU at full width, the one model
in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from gapinit.adapters.lora import ADAPTER, lora_layers
from gapinit.backbones.tail import position_losses
from gapinit.config.methods import METHODS
from gapinit.errors import GapinitError
from gapinit.gap.layers import adapts_vision
from gapinit.train.dropout import draw_mask
from gapinit.train.tail_module import Tail

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone
    from gapinit.config.runs import Run

NARROW = 128
"""Hidden width below which runs are trained in one pass, unless told otherwise."""


def groups(
    runs: Sequence[Run], backbone: Backbone, together: str, dropout: float
) -> list[list[int]]:
    """Return which runs are trained in one pass, as places in `runs`.

    Those of one method, rank and number of epochs, where the method is a plain LoRA on the
    unchanged base. `auto`: where it is faster.
    """
    stacks = together == "always" or (together == "auto" and backbone.hidden_size < NARROW)
    # The rows of a vision tower are of images, whichever runs they are read by.
    stacks = stacks and not adapts_vision(str(runs[0].layers))
    # Masks of modules that read an image's tokens would have to be padded as those are.
    stacks = stacks and not (dropout and backbone.cross_attends)
    found: dict[Any, list[int]] = {}
    for place, run in enumerate(runs):
        plain = stacks and METHODS[run.method].plain
        key = (run.method, run.rank, run.epochs) if plain else place
        found.setdefault(key, []).append(place)
    return list(found.values())


@dataclass(frozen=True)
class Weights:
    """A and B of one run's adapter at one module, and whether B is trained."""

    a: Tensor
    b: Tensor
    trains_b: bool


def weights_of(model: PeftModel) -> dict[str, Weights]:
    """Return a copy of an adapter's matrices by module."""
    found = {}
    for name, module in lora_layers(model).items():
        a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
        found[name] = Weights(a.detach().clone(), b.detach().clone(), b.requires_grad)
    return found


class Slices:
    """Which rows of what a module reads belong to which run."""

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self._samples = 0
        self._labelled: list[int] = []
        self._widths: dict[int, list[int]] = {}

    def enter(self, batch: Mapping[str, Tensor]) -> list[int]:
        """Take note of a batch; return how many labelled positions each run has in it."""
        is_labelled = batch["labels"] != -100
        self._samples, width = is_labelled.shape
        each = is_labelled.sum(1).view(self.runs, -1)
        self._labelled = each.sum(1).tolist()
        # What each run's batch is padded to when it is trained alone: whole sequences, and in the
        # last layer their labelled positions (`gapinit.backbones.last_layer`).
        most = each.amax(1).tolist()
        self._widths = {
            max(most): most,
            width: batch["length"].view(self.runs, -1).amax(1).tolist(),
        }
        return self._labelled

    def counts(self, states: Tensor) -> list[int]:
        """Return how many rows of `states`, (rows, d) or (samples, width, d), each run has."""
        rows = states.shape[:-1].numel()
        if self._width(states) is not None:
            return [rows // self.runs] * self.runs
        if states.ndim == 2 and rows == sum(self._labelled):
            return self._labelled
        raise self._unknown(rows)

    def _width(self, states: Tensor) -> int | None:
        """Return how many rows each sample has in padded states; None: they are not padded."""
        if states.ndim == 3:
            return states.shape[1] if states.shape[0] == self._samples else None
        width, rest = divmod(len(states), self._samples)
        return width if not rest and width in self._widths else None

    def _unknown(self, rows: int) -> GapinitError:
        return GapinitError(
            f"{rows} rows of {self._samples} samples of width {max(self._widths)} are of no known "
            "run: train the runs of this backbone one after another (--together never)"
        )

    def mask(self, states: Tensor, p: float, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the runs' dropout masks, each as drawn when it is trained alone, in their rows."""
        samples, d = self._samples // self.runs, states.shape[-1]
        width = self._width(states)
        if width is not None and width not in self._widths:
            raise self._unknown(states.shape[:-1].numel())
        parts = []
        for run, count in enumerate(self.counts(states)):
            own = None if width is None else self._widths[width][run]
            shape = (count, d) if own is None else (samples, own, d)
            mask = draw_mask(states, shape, p, generators[run])
            if width is not None and own is not None:
                mask = nn.functional.pad(mask, (0, 0, 0, width - own))
            parts.append(mask.view(-1, d))
        return torch.cat(parts)


class StackedLora(nn.Module):
    """A frozen matrix with the adapters of K runs, each on its own slice of the batch."""

    def __init__(
        self,
        layer: Any,
        weights: Sequence[Weights],
        slices: Slices,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.base_layer = layer.get_base_layer()
        self.scaling = layer.scaling[ADAPTER]
        dropout = layer.lora_dropout[ADAPTER]
        self.p = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
        self.a = nn.Parameter(torch.stack([one.a for one in weights]))
        stacked = torch.stack([one.b for one in weights])
        self.b = nn.Parameter(stacked, requires_grad=weights[0].trains_b)
        self._slices = slices
        self._generators = tuple(generators)

    def forward(self, states: Tensor) -> Tensor:
        """Return W0 x + b + (alpha / r) B_k A_k x, k the run of the row."""
        base = self.base_layer(states)
        counts = self._slices.counts(states)
        rows = states.reshape(-1, states.shape[-1]).to(self.a.dtype)
        if self.p and self.training:
            rows = rows * self._slices.mask(states.to(self.a.dtype), self.p, self._generators)
        wide = base.reshape(len(rows), -1).to(self.a.dtype)
        # Not torch.baddbmm over (K, r, d): on a CPU its backward pass took half as long again.
        parts = zip(rows.split(counts), wide.split(counts), self.a, self.b, strict=True)
        added = torch.cat(
            [torch.addmm(w, x @ a.T, b.T, alpha=self.scaling) for x, w, a, b in parts]
        )
        return added.view(base.shape).to(base.dtype)


class StackedTail(Tail):
    """The trained part of a backbone with the adapters of several runs.

    `model` is the backbone with the last run's adapter: its modules are replaced until `finish`.
    """

    def __init__(
        self,
        model: PeftModel,
        backbone: Backbone,
        weights: Sequence[Mapping[str, Weights]],
        generators: Sequence[torch.Generator],
    ) -> None:
        self._slices = Slices(len(weights))
        layers = lora_layers(model)
        stacked = {
            name: StackedLora(layer, [one[name] for one in weights], self._slices, generators)
            for name, layer in layers.items()
        }
        for name, module in stacked.items():
            model.set_submodule(name, module)
        super().__init__(model, backbone)
        # In a tuple: they are not a part of the model meanwhile.
        self._layers = (layers,)
        self._stacked = stacked
        self._dropouts = tuple(stacked.values())

    def run_losses(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return each run's mean cross-entropy over its own labelled positions, (runs,)."""
        labelled = self._slices.enter(batch)
        losses = position_losses(self._backbone[0], batch, padded=True)  # `Slices`
        return torch.stack([own.mean() for own in losses.split(labelled)])

    def gradients(self) -> list[Tensor]:
        """Return the gradients of all weights that are trained, (runs, ...) each."""
        learned = (value.grad for value in self.parameters() if value.requires_grad)
        return [gradient for gradient in learned if gradient is not None]

    def columns(self) -> dict[str, Tensor]:
        """Return the first column of every run's B by module, (runs, d_out)."""
        return {name: module.b.detach()[:, :, 0] for name, module in self._stacked.items()}

    def finish(self) -> None:
        """Put PEFT's own modules back, to be given each run's weights in turn."""
        for name, layer in self._layers[0].items():
            self.model.set_submodule(name, layer)

    @torch.no_grad()
    def give(self, run: int) -> None:
        """Give PEFT's modules the weights of one run; after `finish`."""
        for name, layer in self._layers[0].items():
            layer.lora_A[ADAPTER].weight.copy_(self._stacked[name].a[run])
            layer.lora_B[ADAPTER].weight.copy_(self._stacked[name].b[run])
