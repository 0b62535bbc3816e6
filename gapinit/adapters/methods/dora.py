"""DoRA: direction by a LoRA, magnitude by a vector of its own (Liu et al. 2024; paper, Table 6).

W = m (W0 + (alpha / r) B A) / |W0 + (alpha / r) B A|, row by row, with m = |W0| at the start and
trained. A is Kaiming-uniform and B zero, as in LoRA's default."""

from __future__ import annotations

from gapinit.adapters.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Add the adapter with PEFT's own initialiser."""
    return Adapted(setup.add_lora(use_dora=True))
