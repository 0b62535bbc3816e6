"""Control: Gap-Init with a random direction that has nothing of the gap.

b = normalise(r - <r, u> u), with u the direction that Gap-Init would take and r random. In high
dimension a random direction is nearly this one already; in low dimension it is not.
"""

from __future__ import annotations

from gapinit.adapters.lora import module_directions, point, unit
from gapinit.adapters.methods.random_b import random_directions
from gapinit.adapters.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Add a LoRA and point every module along a random direction orthogonal to its gap's."""
    model = setup.add_lora()
    directions = random_directions(model, setup.generator)
    for name, along in module_directions(model, setup.gap).items():
        random = directions[name]
        directions[name] = unit(random - (random @ along) * along, name)
    point(model, directions, setup.generator)
    return Adapted(model)
