"""LoRA as PEFT initialises it by default: A Kaiming-uniform, B zero.

The difference to `lora-gaussian` is the scale of A alone, which at rank 1 is large."""

from __future__ import annotations

from gapinit.adapters.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Add the adapter with PEFT's own initialiser."""
    return Adapted(setup.add_lora())
