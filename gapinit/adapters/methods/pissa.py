"""PiSSA: A and B from the leading singular triplets of the frozen weight (Meng et al. 2024).

The base keeps the residual, W0 - (alpha / r) B A, so the saved adapter has to be converted to work
on the untouched base."""

from __future__ import annotations

from gapinit.adapters.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Add the adapter with PEFT's own initialiser."""
    return Adapted(setup.add_lora("pissa"), changes_base=True)
