"""What every method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gapinit.config.methods import METHODS, require_rank
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from torch import Tensor

    from gapinit.backbones.base import Backbone
    from gapinit.config.runs import NoiseScale
    from gapinit.gap.gap_vectors import GapVectors

# ASSUME: no paper says how many samples a data-driven initialisation sees beside fine-tuning of
# captions; all of them get as many as Gap-Init's calibration set has in the paper.
CALIBRATION_SAMPLES = 256


@dataclass(frozen=True)
class Setup:
    """Where an adapter goes and what it may use."""

    backbone: Backbone
    layers: list[int]
    rank: int
    alpha: float
    dropout: float
    gap: GapVectors
    """Of every decoder layer."""
    noise: float
    noise_scale: NoiseScale
    generator: torch.Generator
    vision: bool = False
    """Whether the vision tower is adapted, too."""
    first_batches: Callable[[int], list[dict[str, Tensor]]] | None = None
    """Returns the run's first batches that together hold a number of samples."""

    def add_lora(
        self,
        init_lora_weights: bool | str = True,
        prepare: Callable[[LoraConfig], None] | None = None,
        **options: Any,
    ) -> PeftModel:
        """Return the backbone with LoRA at this setup's place, rank and scale."""
        from gapinit.adapters.lora import add_lora

        return add_lora(
            self.backbone,
            self.layers,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            init_lora_weights=init_lora_weights,
            prepare=prepare,
            vision=self.vision,
            **options,
        )

    def batches(self, samples: int) -> list[dict[str, Tensor]]:
        """Return the run's first training batches, as many as hold `samples` samples."""
        assert self.first_batches is not None, "only a rehearsal of Gap-Init has none"
        return self.first_batches(samples)

    def mean(self, modality: str) -> Tensor:
        """Return the mean state of a modality in each layer, (L, d)."""
        return self.gap.means[modality]


@dataclass(frozen=True)
class Adapted:
    """An adapted model, ready to train."""

    model: PeftModel
    changes_base: bool = False
    """Whether the frozen weights were changed, so that saving has to make up for it."""
    saves_base: bool = False
    """Whether that change has no low rank: the changed weights are saved beside the adapter."""
    noise_cosine: float | None = None
    """Mean cosine of the noisy direction to the clean one, where noise was added."""

    @property
    def converts(self) -> bool:
        """Whether saving turns the adapter into one of twice the rank for the untouched base."""
        return self.changes_base and not self.saves_base


def adapt(method: str, setup: Setup) -> Adapted:
    """Put the named method's adapter on the backbone."""
    require_rank(method, setup.rank, "this run")
    if setup.noise and not METHODS[method].takes_noise:
        raise GapinitError(f"method '{method}' takes no noise, found {setup.noise:g}")
    if setup.vision and METHODS[method].uses_gap:
        raise no_gap_in_vision(method, setup)
    module, _, function = METHODS[method].adapt.partition(":")
    chosen: Callable[[Setup], Adapted] = getattr(
        import_module(f"gapinit.adapters.methods.{module}"), function
    )
    return chosen(setup)


def no_gap_in_vision(method: str, setup: Setup) -> GapinitError:
    """Return the error of a method that points every module along a gap of the decoder."""
    decoder = setup.backbone.named_targets(setup.layers)
    every = setup.backbone.named_targets(setup.layers, vision=True)
    name = next((name for name in every if name not in decoder), "the vision tower")
    return GapinitError(
        f"method '{method}' points every adapted module along the gap of its decoder layer, but "
        f"{name} is in the vision tower and has none: adapt decoder layers alone (naive, gg-safe "
        "or all), or take a method without a gap (`gapinit methods`)"
    )
