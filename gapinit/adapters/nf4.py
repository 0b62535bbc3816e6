"""NormalFloat, 4 bits: 16 levels at equal shares of a normal distribution (Dettmers et al. 2023).

Each block of 64 weights, row after row, is divided by its largest magnitude, and every weight is
put on the nearest level. Written out in torch: bitsandbytes' own is not on every machine.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
# Quantiles of N(0, 1), scaled to [-1, 1], with 0 among them; as printed in QLoRA, Appendix E.
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def quantise(weight: Tensor) -> Tensor:
    """Return float32 weights of the same shape, each on one of its block's 16 levels."""
    flat = weight.detach().float().flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    largest = padded.abs().amax(dim=1, keepdim=True)
    levels = torch.tensor(LEVELS, device=weight.device)
    # A block of zeros stays one: its levels are all 0.
    scaled = padded / largest.clamp(min=torch.finfo(torch.float32).tiny)
    nearest = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)
    return (levels[nearest] * largest).flatten()[: len(flat)].view_as(weight)
