"""MiCA: B from the minor left singular vectors of the frozen weight, A zero, B not trained.

W0 = U S V^T; B takes the last r columns of U, those of the smallest singular values. B stays as it
is, so that the adapter writes only where W0 hardly does (arXiv:2604.01694)."""

from __future__ import annotations

from gapinit.adapters.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Add the adapter with PEFT's own initialiser, which freezes B too."""
    return Adapted(setup.add_lora("mica"))
