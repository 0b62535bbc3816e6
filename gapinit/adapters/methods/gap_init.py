"""Gap-Init: A = 0, first column of B along the modality gap (paper, Algorithm 1, Section 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from gapinit.adapters.lora import layer_of, module_directions, point, unit
from gapinit.adapters.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Add a LoRA and point it along the gap, or along the gap with noise (paper, Appendix E)."""
    model = setup.add_lora()
    clean = module_directions(model, setup.gap)
    if setup.noise == 0:
        point(model, clean, setup.generator)
        return Adapted(model)
    noisy = add_noise(setup.gap, setup.noise, setup.noise_scale, setup.generator)
    point(model, module_directions(model, noisy), setup.generator)
    layers = sorted({layer_of(name) for name in clean})
    cosines = torch.cosine_similarity(noisy[layers], setup.gap[layers], dim=1)
    return Adapted(model, noise_cosine=cosines.mean().item())


def add_noise(gap: Tensor, noise: float, scale: str, generator: torch.Generator) -> Tensor:
    """Return g' = normalise(g + epsilon eta), eta ~ N(0, I), for each layer, (L, d).

    `raw` is the formula as printed, on the gap's own length. `unit` normalises the gap first and
    divides eta by sqrt(d): then epsilon alone sets the expected cosine, 1 / sqrt(1 + epsilon^2).
    """
    # ASSUME: the paper does not say whether g is normalised before noise is added: both exist.
    eta = torch.randn(gap.shape, generator=generator, dtype=torch.float64)
    rows = []
    for layer, vector in enumerate(gap):
        if scale == "unit":
            vector = unit(vector, f"gap of layer {layer}")
            perturbed = vector + noise * eta[layer] / len(vector) ** 0.5
        else:
            perturbed = vector + noise * eta[layer]
        rows.append(unit(perturbed, f"noisy gap of layer {layer}"))
    return torch.stack(rows)
