"""Which methods there are to test, and what their tests have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gapinit.adapters.lora import lora_layers
from gapinit.adapters.methods.setup import Adapted, Setup
from gapinit.backbones import load_backbone
from gapinit.config.methods import METHODS
from gapinit.gap.gap_vectors import GapVectors
from gapinit.train.tail_module import Tail
from gapinit.train.trunk.write import read_trunk

from .small_backbone import SmallWorld

PEFTS_OWN: dict[str, dict[str, Any]] = {
    "lora-gaussian": {"init_lora_weights": "gaussian"},
    "lora-kaiming": {"init_lora_weights": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa-16": {"init_lora_weights": "pissa_niter_16"},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "dora": {"use_dora": True},
}
"""Methods that are PEFT's own initialisers and need no data, with the options of `LoraConfig`."""
FROM_DATA = ["eva", "corda", "lora-ga", "gradient", "gap-module"]
ALONG_A_DIRECTION = [
    "gap-init",
    "random-b",
    "orthogonal-to-gap",
    "text-mean",
    "vision-mean",
    "gradient",
    "gap-other-layer",
    "gap-module",
    "gap-init-frozen-b",
    "random-b-frozen-b",
]
"""Methods with A = 0 and a direction in B."""
TRAINED = [name for name, method in METHODS.items() if method.adapt]
QUANTISED = ["qpissa", "loftq"]
CONVERTED = ["pissa", "pissa-16", "olora", "corda", "lora-ga"]
CHANGE_BASE = [*QUANTISED, *CONVERTED]
BATCH = 24
SAMPLES = 2 * BATCH
"""How many there are for methods that are made from training batches."""


def ranks(methods: list[str], *wanted: int) -> list[tuple[str, int]]:
    """Return every method with every rank that it is defined for."""
    return [
        (method, rank)
        for method in methods
        for rank in wanted
        if not (METHODS[method].even_rank and rank % 2)
    ]


def setup(world: SmallWorld, **changes: Any) -> Setup:
    """Return what a method is given, on the whole small backbone."""
    trunk = read_trunk(world.trunk("all"))

    def first_batches(samples: int) -> list[dict[str, Tensor]]:
        stop = min(SAMPLES, -(-samples // BATCH) * BATCH)
        return [trunk.batch(range(start, start + BATCH)) for start in range(0, stop, BATCH)]

    options: dict[str, Any] = {
        "layers": [1, 2],
        "rank": 1,
        "alpha": 2.0,
        "dropout": 0.0,
        "gap": GapVectors.load(world.gap),
        "noise": 0.0,
        "noise_scale": "unit",
        "generator": torch.Generator().manual_seed(4),
        "first_batches": first_batches,
    }
    return Setup(backbone=load_backbone(world.backbone), **options | changes)


def matrices(adapted: Adapted) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B of every adapted module."""
    return {
        name: (layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach())
        for name, layer in lora_layers(adapted.model).items()
    }


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the whole model's outputs, without gradients."""
    with torch.no_grad():
        return model(**batch).logits


def losses(adapted: Adapted, world: SmallWorld, scheme: Setup, steps: int = 6) -> list[float]:
    """Train a few steps by a plain loop and return the loss of each."""
    trunk = read_trunk(world.trunk("all"))
    tail = Tail(adapted.model, scheme.backbone).train()
    learned = [value for value in adapted.model.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=5e-3, weight_decay=0.01)
    found = []
    for step in range(steps):
        loss = tail(**trunk.batch(range(8 * step, 8 * step + 8)))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found
