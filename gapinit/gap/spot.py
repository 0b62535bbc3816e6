"""SPOT-Gap: how far apart, and how differently shaped, two modalities are in one layer."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from gapinit.errors import GapinitError
from gapinit.gap.neighbours import (
    Float64Array,
    FloatArray,
    IndexArray,
    check_neighbours,
    nearest,
    row_blocks,
)
from gapinit.gap.options import check_amount, check_choice

if TYPE_CHECKING:
    import torch

    States: TypeAlias = "npt.NDArray[Any] | torch.Tensor"

Space = Literal["joint", "vision", "text"]

_PARTS: dict[Space, tuple[int, ...]] = {"vision": (0,), "text": (1,), "joint": (0, 1)}
"""Which of the parts (vision, text) a space is put together from."""

DEFAULT_NEIGHBOURS = 10
"""ASSUME: the paper names no neighbourhood size (Appendix C)."""

TOO_LARGE = 1e150
"""Entries from here on have no squared length in double precision."""


@dataclass(frozen=True, eq=False)
class SpotGap:
    """The SPOT-Gap of one layer and what it is made of (paper, Appendix C)."""

    score: float
    """S, the mean of `per_sample`."""
    per_sample: Float64Array
    """(N,): smoothed discrepancy of each pair, s̄_i."""
    semantic: Float64Array
    """(N,): s_sem, the length of each pair's gap."""
    geometric: Float64Array
    """(N,): s_geom, the difference of the pair's local dispersions."""
    weights: Float64Array
    """(N,): weight of each pair's gap in the mean of the smoothed gaps; sums to 1."""


def spot_gap(
    h_text: States,
    h_vision: States,
    *,
    neighbours: int = DEFAULT_NEIGHBOURS,
    alpha_semantic: float = 1.0,
    alpha_geometric: float = 1.0,
    space: Space = "joint",
) -> SpotGap:
    """Measure the SPOT-Gap between the text and the vision states of N pairs.

    With g_i = h_t,i - h_v,i and d_m,i the mean distance of pair i to its k nearest neighbours
    within modality m:

        s_sem,i  = |g_i|,   s_geom,i = |d_t,i - d_v,i|
        s̄_i      = mean over j in N_k(i) of (alpha_sem s_sem,j + alpha_geom s_geom,j)
        S        = mean over i of s̄_i

    N_k(i) are the k pairs nearest to pair i, by default by the Euclidean distance between the
    concatenations [h_v, h_t]; `space` may also be "vision" or "text". No pair is its own
    neighbour; ties go to the lower index; neighbours and distances are exact in float64.

    `h_text` and `h_vision` are (N, d), row i of both from the same pair; NumPy arrays or torch
    tensors of any floating type and on any device; results are float64 in the units of the states.
    `GapinitError` for other shapes, N < 2, k >= N, non-finite entries, negative weights.

    Source: Zhao et al., "When Is Rank-1 Enough?", Appendix C, Algorithm 2.
    """
    check_choice("space", space, Space)
    check_amount("alpha_semantic", alpha_semantic)
    check_amount("alpha_geometric", alpha_geometric)
    text, vision = paired_states(h_text, h_vision)
    count = check_neighbours(neighbours, len(text))
    near_vision, near_text, (pairs, _) = nearest([vision, text], [(0,), (1,), _PARTS[space]], count)

    semantic = gap_lengths(text, vision)
    dispersion_text, dispersion_vision = (
        near.distances.mean(axis=1) for near in (near_text, near_vision)
    )
    geometric = np.abs(dispersion_text - dispersion_vision)
    combined = alpha_semantic * semantic + alpha_geometric * geometric
    per_sample = combined[pairs].mean(axis=1)
    return SpotGap(
        score=float(per_sample.mean()),
        per_sample=per_sample,
        semantic=semantic,
        geometric=geometric,
        weights=_weights(pairs),
    )


def smoothing_weights(text: FloatArray, vision: FloatArray, neighbours: int) -> Float64Array:
    """Return the weight of each pair's gap in the mean of the smoothed gaps.

    The smoothed gap of pair i is the mean of g_j over its k nearest pairs, so its mean over i is
    the sum over j of w_j g_j, where w_j is the number of pairs that have j as a neighbour,
    divided by N k. Takes checked (N, d) arrays; returns (N,), summing to 1.
    """
    count = check_neighbours(neighbours, len(text))
    return _weights(nearest([vision, text], [_PARTS["joint"]], count)[0].indices)


def paired_states(h_text: States, h_vision: States) -> tuple[FloatArray, FloatArray]:
    """Return both modalities as checked NumPy arrays of one shape (N, d), without widening them.

    `GapinitError` names what is wrong: not two-dimensional, not numbers, different shapes, fewer
    than two pairs, or the first sample that has a non-finite entry.
    """
    text, vision = _as_array(h_text, "h_text"), _as_array(h_vision, "h_vision")
    if text.shape != vision.shape:
        raise GapinitError(
            f"h_text has shape {text.shape} and h_vision {vision.shape}: expected one state of "
            "each modality per pair, both (N, d)"
        )
    if text.shape[0] < 2 or text.shape[1] < 1:
        raise GapinitError(
            f"h_text and h_vision have shape {text.shape}: expected at least 2 pairs of width 1"
        )
    for name, states in (("h_text", text), ("h_vision", vision)):
        limit = TOO_LARGE if states.dtype.itemsize > 4 else math.inf
        for block in row_blocks(*states.shape):
            usable = np.abs(states[block]) < limit  # false for NaN, too
            if not usable.all():
                sample = block.start + int(np.argmin(usable.all(axis=1)))
                what = "an entry that is too large to be squared"
                if not np.isfinite(states[sample]).all():
                    what = "a non-finite entry (NaN or infinity)"
                raise GapinitError(
                    f"{name}: sample {sample} of {len(states)} has {what}. Leave it out, or "
                    "extract its state in higher precision."
                )
    return text, vision


def gap_lengths(text: FloatArray, vision: FloatArray) -> Float64Array:
    """Return the length of each pair's gap, |h_t,i - h_v,i|, as (N,) float64."""
    lengths = np.empty(len(text))
    for block in row_blocks(*text.shape):
        gaps = text[block].astype(np.float64)
        gaps -= vision[block]
        lengths[block] = np.square(gaps, out=gaps).sum(axis=1)
    return np.sqrt(lengths, out=lengths)


def _weights(pairs: IndexArray) -> Float64Array:
    # ASSUME: a pair is not among its own neighbours in the smoothing either. The paper writes
    # N_k for both steps and measures distances to "neighbours" in the first, where the pair
    # itself would only add a zero; one meaning is kept for one symbol.
    # ASSUME: "nearest across paired samples" is measured on the concatenation [h_v, h_t]; the
    # paper names no space.
    return np.bincount(pairs.ravel(), minlength=len(pairs)) / pairs.size


def _as_array(states: Any, name: str) -> FloatArray:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(states, torch.Tensor):
        tensor = states.detach()
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor = tensor.float()  # exact; NumPy has no bfloat16
        states = tensor.cpu().numpy()
    array = np.asarray(states)
    if array.ndim != 2:
        raise GapinitError(
            f"{name}: expected a two-dimensional array (samples, width), found shape {array.shape}"
        )
    if array.dtype in (np.float32, np.float64):
        return array
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind not in "iufb":
        raise GapinitError(f"{name}: expected real numbers, found type {array.dtype}")
    return array.astype(np.float64)
