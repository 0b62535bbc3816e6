"""Orthogonal LoRA: A and B random in complementary halves of rank space (PEFT, after Datta 2024).

With Q a random orthogonal r x r matrix, B = P Q_even and A = (R Q_odd)^T with P and R Gaussian, so
that B A = 0 although neither is zero. It takes as many odd as even rows of Q: even ranks only."""

from __future__ import annotations

from gapinit.adapters.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Add the adapter with PEFT's own initialiser."""
    return Adapted(setup.add_lora("orthogonal"))
