"""Control: random B with zero A, B not trained.

What `gap-init-frozen-b` is to Gap-Init, this is to `random-b`: the direction cannot be corrected.
"""

from __future__ import annotations

from gapinit.adapters.lora import freeze_b
from gapinit.adapters.methods import random_b
from gapinit.adapters.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Make random B's adapter and freeze B."""
    adapted = random_b.adapt(setup)
    freeze_b(adapted.model)
    return adapted
