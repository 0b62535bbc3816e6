"""Geometry of the modality gap in one layer: spectrum of per-sample gaps, cones, cosines."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gapinit.errors import GapinitError
from gapinit.gap.neighbours import Float64Array, FloatArray, row_blocks
from gapinit.gap.spot import paired_states

if TYPE_CHECKING:
    from gapinit.gap.spot import States


class Spectrum(NamedTuple):
    """Singular values of the per-sample gaps, as they are and centred, along the last axis."""

    singular_values: Float64Array
    singular_values_centred: Float64Array

    @property
    def explained(self) -> Float64Array:
        """Return each component's share of the energy of the gaps as they are."""
        return explained_share(self.singular_values)

    @property
    def explained_centred(self) -> Float64Array:
        """Return each component's share of the variance."""
        return explained_share(self.singular_values_centred)


class ConeCosines(NamedTuple):
    """Cosine of each centred state to the centred mean of its modality, (N,) each."""

    vision: Float64Array
    text: Float64Array


def spectrum(gaps: npt.ArrayLike) -> Spectrum:
    """Return the singular values of per-sample gaps (N, d), as they are and centred.

    The explained share of component m is s_m^2 / (sum of all s^2): of the second moment for the
    gaps as they are, of the variance for the centred ones (zeros if all s are zero).

    Source: Zhao et al., section 3.2 and figure 3, which do not say which of the two is meant.
    """
    matrix = np.asarray(gaps, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape or not np.isfinite(matrix).all():
        raise GapinitError(
            f"gaps: expected a finite array (samples, width), found shape {matrix.shape}"
        )
    centred = matrix - matrix.mean(axis=0)
    found: list[Any] = [np.linalg.svd(one, compute_uv=False) for one in (matrix, centred)]
    return Spectrum(*found)


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
    """Return the length of a gap (d,).

    `GapinitError`, which starts with `origin`, if it is zero or not finite.
    """
    length = float(np.linalg.norm(gap))
    if not 0 < length < math.inf:
        raise GapinitError(
            f"{origin}: the gap between text and vision has the length {length} and no direction. "
            "Check that the states are finite and that the two modalities' differ."
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
