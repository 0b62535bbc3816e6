"""Controls: a zero A as in Gap-Init with another direction in B, to isolate the gap's effect."""

from __future__ import annotations

from dataclasses import replace

import torch
from peft import PeftModel
from torch import Tensor

from gapinit.adapters.directions import decoder_modules, module_directions, unit
from gapinit.adapters.initialize import initialize_lora_gap_weights, point
from gapinit.adapters.lora import freeze_b, lora_layers
from gapinit.adapters.methods.setup import Adapted, Setup


def random_b(setup: Setup) -> Adapted:
    """Random B: each module along its own random direction instead of the gap.

    The zero matrix and the scale are those of Gap-Init; the difference between the two is the
    effect of the gap direction.
    """
    model = setup.add_lora()
    point(lora_layers(model), _random_directions(model, setup.generator), setup.generator)
    return Adapted(model)


def random_b_frozen_b(setup: Setup) -> Adapted:
    """Random B that is not trained, as `gap_init_frozen_b` is Gap-Init with a frozen B."""
    adapted = random_b(setup)
    freeze_b(adapted.model)
    return adapted


def orthogonal_to_gap(setup: Setup) -> Adapted:
    """A random direction without a component along the gap: b = normalise(r - <r, u> u).

    u is the direction of Gap-Init, r is random. In high dimension r is already nearly orthogonal
    to u; in low dimension it is not.
    """
    model = setup.add_lora()
    directions = _random_directions(model, setup.generator)
    for name, along in module_directions(decoder_modules(setup.backbone), setup.gap).items():
        random = directions[name]
        directions[name] = unit(random - (random @ along) * along, name)
    point(lora_layers(model), directions, setup.generator)
    return Adapted(model)


def _random_directions(model: PeftModel, generator: torch.Generator) -> dict[str, Tensor]:
    """Return a random unit vector, (d_out,), for each adapted module."""
    return {
        name: unit(torch.randn(layer.out_features, generator=generator, dtype=torch.float64), name)
        for name, layer in lora_layers(model).items()
    }


def text_mean(setup: Setup) -> Adapted:
    """The mean text state of each layer instead of the gap.

    The gap is the text mean minus the vision mean. If B along one mean alone scores as well, then a
    large shared direction of the layer helps, not the difference between the modalities.
    """
    return _along(setup, setup.mean("text"))


def vision_mean(setup: Setup) -> Adapted:
    """The mean vision state of each layer instead of the gap."""
    return _along(setup, setup.mean("vision"))


def gap_other_layer(setup: Setup) -> Adapted:
    """The gap of another layer: if it scores as well, the layer's own geometry does not matter."""
    # ASSUME: half the stack away (cyclic), because neighbouring layers have nearly equal gaps.
    return _along(setup, setup.gap.vectors.roll(-(len(setup.gap.vectors) // 2), dims=0))


def _along(setup: Setup, vectors: Tensor) -> Adapted:
    """Initialise along vectors (L, d) that replace the gap's."""
    model = setup.add_lora()
    gap = replace(setup.gap, vectors=vectors)
    initialize_lora_gap_weights(model, gap, generator=setup.generator)
    return Adapted(model)
