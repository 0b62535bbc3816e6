"""Gap-Init by `gapinit.initialize_lora_gap_weights`, as a user calls it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gapinit.adapters.initialize import initialize_lora_gap_weights
from gapinit.adapters.lora import freeze_b
from gapinit.adapters.methods.setup import CALIBRATION_SAMPLES, Adapted, Setup, no_gap_in_vision
from gapinit.backbones.hooks import output_of
from gapinit.backbones.in_memory import decoder_linears
from gapinit.backbones.tail import batch_inputs
from gapinit.errors import GapinitError
from gapinit.gap.gap_vectors import ModuleGap

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone


def gap_init(setup: Setup) -> Adapted:
    """Gap-Init: A = 0, first column of B along the modality gap, or along the gap with noise.

    Source: Zhao et al., "When Is Rank-1 Enough?", Algorithm 1, section 4.3; noise: Appendix E.
    """
    model = setup.add_lora()
    report = initialize_lora_gap_weights(
        model,
        setup.gap,
        noise=setup.noise,
        noise_scale=setup.noise_scale,
        generator=setup.generator,
    )
    return Adapted(model, noise_cosine=report.noise_cosine if setup.noise else None)


def gap_init_frozen_b(setup: Setup) -> Adapted:
    """Control: Gap-Init whose B is not trained.

    Only A learns, so at rank 1 every update of a module stays along the gap. Compared with Gap-Init
    it shows how much of the result needs a B that can turn.
    """
    adapted = gap_init(setup)
    freeze_b(adapted.model)
    return adapted


def gap_module(setup: Setup) -> Adapted:
    """Gap-Init with `coordinates: module`: the gap of each adapted module's own output.

    g = mean over the first training samples of (mean output at the caption positions - mean output
    at the image positions). The paper's gap is in the space of the layer's output; this one is in
    the space where B writes, of any width.
    """
    if setup.backbone.cross_attends:
        raise GapinitError(
            "method 'gap-module' needs vision states at each module's output; this backbone reads "
            "images by cross-attention and has none there. Use 'gap-init'."
        )
    if setup.vision:
        raise no_gap_in_vision("gap-module", setup)
    gaps = module_gaps(setup.backbone, setup.layers, setup.batches(CALIBRATION_SAMPLES))
    model = setup.add_lora()
    measured = replace(setup.gap, modules=gaps)
    initialize_lora_gap_weights(model, measured, coordinates="module", generator=setup.generator)
    return Adapted(model)


@torch.no_grad()
def module_gaps(
    backbone: Backbone, layers: list[int], batches: list[dict[str, Tensor]]
) -> dict[str, ModuleGap]:
    """Return the mean gap of each target module's output, (d_out,) float64, by its name."""
    total: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    samples = 0
    with ExitStack() as hooks:
        for name, module in backbone.named_targets(layers).items():
            hooks.enter_context(output_of(module, partial(outputs.__setitem__, name)))
        for batch in batches:
            text = _text_positions(batch["labels"])
            inputs = batch_inputs(backbone, batch)
            backbone.decode(inputs)
            _, image = backbone.vision_states(inputs, inputs.states)
            # A sample whose text was cut off completely has no gap.
            kept = text.any(dim=1)
            samples += int(kept.sum())
            for name, output in outputs.items():
                gap = _sample_gaps(output, text, image)[kept].sum(dim=0).cpu()
                total[name] = total[name] + gap if name in total else gap
    linears = decoder_linears(backbone)
    return {name: ModuleGap(linears[name].layer, gap / samples) for name, gap in total.items()}


def _sample_gaps(output: Tensor, text: Tensor, image: Tensor) -> Tensor:
    """Return text mean less image mean of each sample, (samples, d_out) float64."""
    # OPT flattens the inputs of fc1 and fc2.
    states = output.reshape(*text.shape, output.shape[-1]).double()
    return _mean(states, text) - _mean(states, image)


def _mean(states: Tensor, where: Tensor) -> Tensor:
    weights = where.double() / where.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,btd->bd", weights, states)


def _text_positions(labels: Tensor) -> Tensor:
    """Return the positions of the learned tokens but the last: the caption without BOS and EOS.

    A label is the next token. A position holds a learned token if the label before it is set, and
    precedes padding or the next prompt if its own label is not.
    """
    learned = labels != -100
    before = torch.zeros_like(learned)
    before[:, 1:] = learned[:, :-1]
    return learned & before
