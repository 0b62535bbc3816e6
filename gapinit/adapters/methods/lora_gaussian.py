"""Standard LoRA as in the paper: A Gaussian, B zero (Hu et al. 2022; paper, Table 13).

PEFT's "gaussian" draws A with standard deviation 1 / r: at r = 1 that is N(0, 1), so |A| is about
sqrt(d_in), and with alpha / r = 2 a small B already makes a large update."""

from __future__ import annotations

from gapinit.adapters.methods.setup import Adapted, Setup


def adapt(setup: Setup) -> Adapted:
    """Add the adapter with PEFT's own initialiser."""
    return Adapted(setup.add_lora("gaussian"))
