"""PiSSA by a randomised SVD with 16 power iterations (Meng et al. 2024; the dynamics study).

Faster than the exact SVD on wide matrices; the singular triplets are approximate, the base plus
adapter is W0 all the same, since the base keeps what the adapter does not hold."""

from __future__ import annotations

from gapinit.adapters.methods.setup import Adapted, Setup

ITERATIONS = 16


def adapt(setup: Setup) -> Adapted:
    """Add the adapter with PEFT's own initialiser."""
    return Adapted(setup.add_lora(f"pissa_niter_{ITERATIONS}"), changes_base=True)
