"""OLoRA: B and A from the QR decomposition of the frozen weight (Büyükakyüz 2024).

W0 = Q R; B takes the first r columns of Q, A the first r rows of R. The base keeps
W0 - (alpha / r) B A, so the saved adapter has to be converted, as PiSSA's."""

from __future__ import annotations

from gapinit.adapters.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Add the adapter with PEFT's own initialiser."""
    return Adapted(setup.add_lora("olora"), changes_base=True)
