"""Geometry of the modality gap in one layer: spectrum of per-sample gaps, cones, cosines."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from gapinit.errors import GapinitError
from gapinit.gap.neighbours import Float64Array, FloatArray, row_blocks
from gapinit.gap.spot import paired_states

if TYPE_CHECKING:
    from gapinit.gap.spot import States


class Spectrum(NamedTuple):
    """Singular values of the per-sample gaps, and the share of their energy each one holds."""

    singular_values: Float64Array
    singular_values_centred: Float64Array
    explained: Float64Array
    explained_centred: Float64Array


class ConeCosines(NamedTuple):
    """Cosine of each centred state to the centred mean of its modality, (N,) each."""

    vision: Float64Array
    text: Float64Array


def spectrum(gaps: npt.ArrayLike) -> Spectrum:
    """Return the singular values of per-sample gaps (N, d), as they are and centred.

    The explained share of component m is s_m^2 / (sum of all s^2): of the second moment for the
    gaps as they are, of the variance after their mean is taken off (zeros if nothing is left).

    Source: Zhao et al., section 3.2 and figure 3, which do not say which of the two is meant.
    """
    matrix = np.asarray(gaps, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape or not np.isfinite(matrix).all():
        raise GapinitError(
            f"gaps: expected a finite array (samples, width), found shape {matrix.shape}"
        )
    values: Float64Array = np.linalg.svd(matrix, compute_uv=False).astype(np.float64)
    centred: Float64Array = np.linalg.svd(matrix - matrix.mean(axis=0), compute_uv=False).astype(
        np.float64
    )
    return Spectrum(values, centred, explained_share(values), explained_share(centred))


def explained_share(singular_values: Float64Array) -> Float64Array:
    """Return s_m^2 / (sum of all s^2) along the last axis; zeros where all s are zero."""
    energy = np.square(singular_values)
    total = energy.sum(axis=-1, keepdims=True)
    return np.divide(energy, total, out=np.zeros_like(energy), where=total > 0)


def cone_cosines(h_vision: States, h_text: States) -> ConeCosines:
    """Measure how narrow each modality's cone is.

    With mu the mean over both modalities, cos(h_m,i - mu, mu_m - mu) for each state of modality m.
    Both arguments are (N, d). `GapinitError` if the modalities have the same mean, or a state is
    the common mean itself: there is no angle then.

    Source: Zhao et al., section 3.3 and figure 4.
    """
    text, vision = paired_states(h_text, h_vision)
    means = [states.mean(axis=0, dtype=np.float64) for states in (vision, text)]
    centre = (means[0] + means[1]) / 2
    return ConeCosines(
        vision=_cosines_to_mean(vision, means[0] - centre, centre, "h_vision"),
        text=_cosines_to_mean(text, means[1] - centre, centre, "h_text"),
    )


def gap_norm(gap: Float64Array, origin: str) -> float:
    """Return the length of a gap (d,); `GapinitError` that starts with `origin` if it is zero."""
    length = float(np.linalg.norm(gap))
    if length == 0.0:
        raise GapinitError(
            f"{origin}: the gap between text and vision is zero and has no direction. Check that "
            "the two modalities do not have the same states."
        )
    return length


def gap_cosine(first: Float64Array, second: Float64Array, origin: str) -> float:
    """Return the cosine of two gaps (d,); `GapinitError` that starts with `origin` if one is 0."""
    value = first @ second / (gap_norm(first, origin) * gap_norm(second, origin))
    return float(np.clip(value, -1.0, 1.0))


def _cosines_to_mean(
    states: FloatArray, direction: Float64Array, centre: Float64Array, name: str
) -> Float64Array:
    unit = direction / gap_norm(direction, name)
    cosines = np.empty(len(states))
    for block in row_blocks(*states.shape):
        offsets = states[block] - centre
        lengths = np.linalg.norm(offsets, axis=1)
        if not lengths.all():
            sample = block.start + int(np.argmin(lengths))
            raise GapinitError(f"{name}: sample {sample} is the mean of both modalities: no angle")
        cosines[block] = offsets @ unit / lengths
    return np.clip(cosines, -1.0, 1.0)
