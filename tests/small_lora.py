"""LoRA on the small library's model: make it, read it, train it."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import gapinit
from gapinit.gap.gap_vectors import GapVectors

from .small_library import (
    WIDTH,
    Reference,
    SmallLibrary,
    inputs_of,
    weights_of,
)

DECODER = "language_model.model.decoder.layers"
Q, FC1, FC2 = (f"{DECODER}.2.{name}" for name in ("self_attn.q_proj", "fc1", "fc2"))


def with_lora(plain: Any, layers: tuple[int, ...] = (1, 2), **options: Any) -> Any:
    """Return a copy of the plain model with LoRA on all linear modules of some decoder layers."""
    pattern = rf"{DECODER}\.({'|'.join(map(str, layers))})\.(self_attn\..*_proj|fc1|fc2)"
    given = {name: options.pop(name) for name in list(options) if name == "low_cpu_mem_usage"}
    options = {"target_modules": pattern.replace(".layers", r"\.layers"), "r": 1} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(copy.deepcopy(plain), LoraConfig(**options), **given)


def lora(model: Any, name: str) -> Any:
    return model.get_base_model().get_submodule(name)


def matrices(model: Any, name: str, adapter: str = "default") -> tuple[Tensor, Tensor]:
    module = lora(model, name)
    return module.lora_A[adapter].weight.detach(), module.lora_B[adapter].weight.detach()


def direction(expected: Reference, plain: Any, name: str) -> Tensor:
    """Return what the module's first column should be, from the independent measurement."""
    vector = expected.gaps[int(name.split(".layers.")[1].split(".")[0])]
    weight = plain.get_submodule(name).weight.double()
    if weight.shape[0] != WIDTH:
        vector = weight @ vector
    return vector / vector.norm()


def train_a_step(model: Any, library: SmallLibrary) -> None:
    inputs = inputs_of(model, library.processor(), library.pairs[0])
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    labels = inputs["input_ids"].clone()
    labels[:, :5] = -100
    model(**inputs, labels=labels).loss.backward()
    optimiser.step()


def refused(message: str, model: Any, gap: GapVectors, **options: Any) -> None:
    """The call fails with a message, and not a single weight has changed."""
    before = weights_of(model)
    with pytest.raises(gapinit.GapinitError, match=message):
        gapinit.initialize_lora_gap_weights(model, gap, **options)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())
