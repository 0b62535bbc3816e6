"""Gap-Init with `coordinates: module`: the gap of each adapted module's own output.

g = mean over samples of (mean output at the caption's positions - mean output at the image's).
The paper's gap lives in the layer's output; this one lives where B writes, whatever the width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gapinit.adapters.lora import in_base, lora_layers, point, unit
from gapinit.adapters.methods.setup import CALIBRATION_SAMPLES, Adapted, Setup, no_gap_in_vision
from gapinit.backbones.tail import batch_inputs, tail_states
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone


def adapt(setup: Setup) -> Adapted:
    """Measure the gap of every module on the first training samples, and point B along it."""
    if setup.backbone.cross_attends:
        raise GapinitError(
            "method 'gap-module' needs vision states at each module's output; this backbone reads "
            "images by cross-attention and has none there. Use 'gap-init'."
        )
    if setup.vision:
        raise no_gap_in_vision("gap-module", setup)
    gaps = module_gaps(setup.backbone, setup.layers, setup.batches(CALIBRATION_SAMPLES))
    model = setup.add_lora()
    directions = {name: unit(gaps[in_base(name)], name) for name in lora_layers(model)}
    point(model, directions, setup.generator)
    return Adapted(model)


@torch.no_grad()
def module_gaps(
    backbone: Backbone, layers: list[int], batches: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the mean gap of each target module's output, (d_out,) float64, by its name."""
    total: dict[str, Tensor] = {}
    samples = 0
    with _outputs(backbone, layers) as outputs:
        for batch in batches:
            tail_states(backbone, batch)
            text = _text_positions(batch["labels"])
            inputs = batch_inputs(backbone, batch)
            _, image = backbone.vision_states(inputs, inputs.states)
            # A sample cut so short that none of its text is left has no gap.
            kept = text.any(dim=1)
            samples += int(kept.sum())
            for name, output in outputs.items():
                gap = _sample_gaps(output, text, image)[kept].sum(dim=0).cpu()
                total[name] = total[name] + gap if name in total else gap
    return {name: gap / samples for name, gap in total.items()}


def _sample_gaps(output: Tensor, text: Tensor, image: Tensor) -> Tensor:
    """Return text mean less image mean of each sample, (samples, d_out) float64."""
    # OPT flattens what fc1 and fc2 read.
    states = output.reshape(*text.shape, output.shape[-1]).double()
    return _mean(states, text) - _mean(states, image)


def _mean(states: Tensor, where: Tensor) -> Tensor:
    weights = where.double() / where.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,btd->bd", weights, states)


def _text_positions(labels: Tensor) -> Tensor:
    """Return where a learned token stands that is not the last: the caption without BOS and EOS.

    A label is the next token, so a position holds a learned token if the label before it is set,
    and padding or the next prompt follows if its own is not.
    """
    learned = labels != -100
    before = torch.zeros_like(learned)
    before[:, 1:] = learned[:, :-1]
    return learned & before


@contextmanager
def _outputs(backbone: Backbone, layers: list[int]) -> Iterator[dict[str, Tensor]]:
    """Keep each target module's last output in a mapping, while the block runs."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, _module: Any, _inputs: Any, output: Tensor) -> None:
        outputs[name] = output

    handles = [
        module.register_forward_hook(partial(keep, name))
        for name, module in backbone.named_targets(layers).items()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
