"""The modality gap of one layer as a vector: where text states lie, seen from vision states."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from gapinit.gap.neighbours import Float64Array, FloatArray, row_blocks
from gapinit.gap.spot import paired_states, smoothing_weights

if TYPE_CHECKING:
    from gapinit.gap.spot import States


def gap_vector(h_text: States, h_vision: States, *, neighbours: int | None = None) -> Any:
    """Estimate the modality gap of one layer from the states of N pairs.

    Without `neighbours` the plain mean g = mean over i of (h_t,i - h_v,i). With `neighbours` = k
    the mean of the SPOT-smoothed gaps, g = mean over i of mean over j in N_k(i) of
    (h_t,j - h_v,j), where N_k(i) are the k other pairs nearest to pair i by the Euclidean
    distance between the concatenations [h_v, h_t]. The two differ where neighbourhoods are not
    symmetric.

    `h_text` and `h_vision` are (N, d), row i of both from the same pair; NumPy arrays or torch
    tensors. Returns (d,) in the units of the states, summed in float64: a NumPy float64 array,
    or, if `h_text` is a torch tensor, a float64 tensor on its device (float32 where the device
    has no float64). Not normalised. `GapinitError` for other shapes, N < 2, k >= N, non-finite
    entries.

    Source: Zhao et al., "When Is Rank-1 Enough?", section 4.2.
    """
    text, vision = paired_states(h_text, h_vision)
    if neighbours is None:
        gap = mean_gap(text, vision)
    else:
        gap = weighted_gap(text, vision, smoothing_weights(text, vision, neighbours))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(h_text, torch.Tensor):
        dtype = torch.float32 if h_text.device.type == "mps" else torch.float64
        return torch.from_numpy(gap).to(device=h_text.device, dtype=dtype)
    return gap


def mean_gap(text: FloatArray, vision: FloatArray) -> Float64Array:
    """Return the plain mean of h_t,i - h_v,i over checked (N, d) arrays, as (d,) float64."""
    # The sum is divided, not the weights: 1/N is not exact, and a constant gap stays exact so.
    return weighted_gap(text, vision, np.ones(len(text))) / len(text)


def weighted_gap(text: FloatArray, vision: FloatArray, weights: Float64Array) -> Float64Array:
    """Return the sum over i of w_i (h_t,i - h_v,i) over checked (N, d) arrays, as (d,) float64.

    Differences come first, so that what both modalities share cancels before it is rounded.
    """
    total = np.zeros(text.shape[1])
    for block in row_blocks(*text.shape):
        gaps = text[block].astype(np.float64)
        gaps -= vision[block]
        total += weights[block] @ gaps
    return total
