"""What every method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from gapinit.methods import METHODS

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor

    from gapinit.backbones.blip2 import Blip2Backbone


@dataclass(frozen=True)
class Setup:
    """Where an adapter goes and what it may use."""

    backbone: Blip2Backbone
    layers: list[int]
    rank: int
    alpha: float
    dropout: float
    gap: Tensor
    """(L, d) float64, the gap of each decoder layer."""
    noise: float
    noise_scale: str
    generator: torch.Generator


@dataclass(frozen=True)
class Adapted:
    """An adapted model, ready to train."""

    model: PeftModel
    changes_base: bool = False
    """Whether the frozen weights were changed, so that saving has to convert the adapter."""
    noise_cosine: float | None = None
    """Mean cosine of the noisy direction to the clean one, where noise was added."""


def adapt(method: str, setup: Setup) -> Adapted:
    """Put the named method's adapter on the backbone."""
    module = import_module(f"gapinit.methods.{METHODS[method].module}")
    chosen: Callable[[Setup], Adapted] = module.adapt
    return chosen(setup)
