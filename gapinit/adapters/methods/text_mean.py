"""Control: Gap-Init with the mean text state in place of the gap.

The gap is the text mean less the vision mean. If B along one of them alone does as well, it is
a large shared direction of the layer that helps and not the difference of the modalities.
"""

from __future__ import annotations

from gapinit.adapters.lora import module_directions, point
from gapinit.adapters.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Add a LoRA and point it along each layer's mean text state."""
    model = setup.add_lora()
    point(model, module_directions(model, setup.mean("text")), setup.generator)
    return Adapted(model)
