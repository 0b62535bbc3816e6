"""Control: Gap-Init whose B is not trained.

Only A learns, so every update of a module stays along the gap (at rank 1): how much of the result
is the direction's, and how much is that B may leave it.
"""

from __future__ import annotations

from gapinit.adapters.lora import freeze_b
from gapinit.adapters.methods import gap_init
from gapinit.adapters.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Make Gap-Init's adapter and freeze B."""
    adapted = gap_init.adapt(setup)
    freeze_b(adapted.model)
    return adapted
