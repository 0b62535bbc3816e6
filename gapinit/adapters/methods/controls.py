"""Controls: Gap-Init's zeroed A with another direction in B, which say what the gap itself does."""

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
    """Random B: each module along a random direction of its own, in place of the gap.

    The same zeroed matrix, the same scale, no gap. What Gap-Init gains over this is what the gap
    direction itself gives.
    """
    model = setup.add_lora()
    point(lora_layers(model), _random_directions(model, setup.generator), setup.generator)
    return Adapted(model)


def random_b_frozen_b(setup: Setup) -> Adapted:
    """Random B that is not trained: to `random_b` what `gap_init_frozen_b` is to Gap-Init."""
    adapted = random_b(setup)
    freeze_b(adapted.model)
    return adapted


def orthogonal_to_gap(setup: Setup) -> Adapted:
    """A random direction that has nothing of the gap: b = normalise(r - <r, u> u).

    u is the direction that Gap-Init would take, r random. In high dimension a random direction is
    nearly this one already; in low dimension it is not.
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
    """The mean text state of each layer in place of the gap.

    The gap is the text mean less the vision mean. If B along one of them alone does as well, it is
    a large shared direction of the layer that helps and not the difference of the modalities.
    """
    return _along(setup, setup.mean("text"))


def vision_mean(setup: Setup) -> Adapted:
    """The mean vision state of each layer in place of the gap: its other end."""
    return _along(setup, setup.mean("vision"))


def gap_other_layer(setup: Setup) -> Adapted:
    """The gap of another layer: if it does as well, this layer's geometry is not what matters."""
    # ASSUME: half the stack away, counted round: neighbouring layers have nearly the same gap.
    return _along(setup, setup.gap.vectors.roll(-(len(setup.gap.vectors) // 2), dims=0))


def _along(setup: Setup, vectors: Tensor) -> Adapted:
    """Initialise along other vectors than the gap's, (L, d)."""
    model = setup.add_lora()
    gap = replace(setup.gap, vectors=vectors)
    initialize_lora_gap_weights(model, gap, generator=setup.generator)
    return Adapted(model)
