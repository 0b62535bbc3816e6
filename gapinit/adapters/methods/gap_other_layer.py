"""Control: Gap-Init with another layer's gap.

If any gap will do, it is not this layer's geometry that matters.
"""

from __future__ import annotations

from gapinit.adapters.lora import module_directions, point
from gapinit.adapters.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Add a LoRA and point each layer along the gap of the layer half the stack away."""
    model = setup.add_lora()
    # ASSUME: half the stack away, counted round: neighbouring layers have nearly the same gap.
    other = setup.gap.roll(-(len(setup.gap) // 2), dims=0)
    point(model, module_directions(model, other), setup.generator)
    return Adapted(model)
