"""The modality gap of each decoder layer: its vector, its SPOT-Gap score, its geometry."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from gapinit.artifacts import create_hdf5, hdf5_inputs, open_hdf5, sha256
from gapinit.errors import GapinitError
from gapinit.layers import select_layers
from gapinit.neighbours import FloatArray, check_neighbours, row_blocks
from gapinit.spot import paired_states, smoothing_weights, spot_gap

if TYPE_CHECKING:
    import h5py

    from gapinit.spot import States

Float64Array = npt.NDArray[np.float64]
Smoothing = Literal["spot", "mean"]

VERSION = 1
"""Raised when the numbers of this stage change."""


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


@dataclass(frozen=True, eq=False)
class GapFile:
    """What a gap artifact holds: L layers of width d, from `size` calibration pairs."""

    gap: Float64Array
    """(L, d): the gap used for initialisation, `gap_smoothed` or `gap_mean`."""
    gap_mean: Float64Array
    gap_smoothed: Float64Array
    text_mean: Float64Array
    vision_mean: Float64Array
    gap_norm: Float64Array
    """(L,): length of `gap`."""
    cosine_mean_smoothed: Float64Array
    score: Float64Array
    """(L,): SPOT-Gap score; `semantic` and `geometric` are the means of its two components."""
    semantic: Float64Array
    geometric: Float64Array
    per_sample: Float64Array
    """(L, size): smoothed discrepancy of each calibration pair."""
    singular_values: Float64Array
    """(L, min(size, d)): of the per-sample gaps; `singular_values_centred` after centring."""
    singular_values_centred: Float64Array
    vision_cosine: Float64Array
    """(L, size): cone cosines of the vision states; `text_cosine` those of the text states."""
    text_cosine: Float64Array
    heldout_gap: Float64Array | None
    """(L, d): plain mean gap of the disjoint sample; None where none was taken."""
    cosine_heldout: Float64Array | None
    """(L,): cosine of `gap` to `heldout_gap`."""
    inputs: Mapping[str, Any]
    """What the artifact was made from."""


OPTIONAL_DATASETS = ("heldout_gap", "cosine_heldout")
DATASETS = tuple(field.name for field in fields(GapFile) if field.name != "inputs")


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
        gap = _weighted_gap(text, vision, np.ones(len(text))) / len(text)
    else:
        gap = _weighted_gap(text, vision, smoothing_weights(text, vision, neighbours))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(h_text, torch.Tensor):
        dtype = torch.float32 if h_text.device.type == "mps" else torch.float64
        return torch.from_numpy(gap).to(device=h_text.device, dtype=dtype)
    return gap


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


def estimate_gap_file(
    states: Path,
    output: Path,
    *,
    size: int,
    heldout: int,
    neighbours: int,
    alpha_semantic: float,
    alpha_geometric: float,
    smoothing: Smoothing,
    exclude_bottom: int,
    num_layers: int,
) -> None:
    """Estimate the gap of every layer from a states artifact and write the gap artifact.

    The first `size` pairs are the calibration set, so that smaller sets are part of larger ones;
    the next `heldout` pairs (0 for none) give a second gap that shares no pair with the first.
    `smoothing` says which mean becomes `gap`: "spot" (of the smoothed gaps) or "mean" (plain).
    `num_layers` and `exclude_bottom` are checked against the layers here, before the work starts;
    `gapinit.layers.write_layers` makes the choice.

    Reads HDF5 of kind "states" (`vision`, `text` (L, N, d) float32; `image_id` (N,)), one layer at
    a time; writes HDF5 of kind "gap" with the datasets of `GapFile`. `GapinitError` names layer
    and image for a state that is not finite or zero, and the layer for a gap that is zero.

    Source: Zhao et al., section 4.2, Algorithm 1, Appendices C and G.4.
    """
    if smoothing not in get_args(Smoothing):
        raise GapinitError(f"smoothing: expected 'spot' or 'mean', found {smoothing!r}")
    inputs: dict[str, Any] = {
        "version": VERSION,
        "size": size,
        "heldout": heldout,
        "neighbours": neighbours,
        "alpha_semantic": alpha_semantic,
        "alpha_geometric": alpha_geometric,
        "smoothing": smoothing,
    }
    with open_hdf5(states, "states") as source:
        images = _check_states(source, states, size, heldout, neighbours)
        for strategy in ("naive", "gg-safe"):
            select_layers([0.0] * source["text"].shape[0], strategy, num_layers, exclude_bottom)
        inputs["heldout_shared_images"] = len(set(images[:size]) & set(images[size:]))
        inputs["states"] = sha256(states)
        inputs["states_inputs"] = hdf5_inputs(source)
        with create_hdf5(output, "gap", inputs) as target:
            layers = source["text"].shape[0]
            for layer in range(layers):
                text, vision = (
                    _read_layer(source, states, name, layer, images) for name in ("text", "vision")
                )
                origin = f"{states}: layer {layer}"
                try:
                    measured = _measure_layer(
                        text[:size], vision[:size], neighbours, alpha_semantic, alpha_geometric
                    )
                except GapinitError as error:
                    raise GapinitError(f"{origin}: {error}") from None
                used = measured["gap_smoothed" if smoothing == "spot" else "gap_mean"]
                measured |= {"gap": used, "gap_norm": _length(used, origin)}
                if heldout:
                    other = _weighted_gap(text[size:], vision[size:], np.ones(heldout)) / heldout
                    measured |= {
                        "heldout_gap": other,
                        "cosine_heldout": _cosine(used, other, f"{origin}, held-out pairs"),
                    }
                _store(target, measured, layer, layers)


def read_gap(path: Path) -> GapFile:
    """Read a gap artifact; `GapinitError` if it is missing, damaged or of another kind."""
    with open_hdf5(path, "gap") as file:
        missing = [name for name in DATASETS if name not in file and name not in OPTIONAL_DATASETS]
        if missing:
            raise GapinitError(
                f"{path}: dataset '{missing[0]}' is missing. Delete the file and run the gap "
                "stage again."
            )
        content: dict[str, Any] = {
            name: file[name][:] if name in file else None for name in DATASETS
        }
        return GapFile(**content, inputs=hdf5_inputs(file))


def _measure_layer(
    text: FloatArray,
    vision: FloatArray,
    neighbours: int,
    alpha_semantic: float,
    alpha_geometric: float,
) -> dict[str, Any]:
    spot = spot_gap(
        text,
        vision,
        neighbours=neighbours,
        alpha_semantic=alpha_semantic,
        alpha_geometric=alpha_geometric,
    )
    mean = _weighted_gap(text, vision, np.ones(len(text))) / len(text)
    smoothed = _weighted_gap(text, vision, spot.weights)
    cosine = _cosine(mean, smoothed, "calibration pairs")
    values = spectrum(text.astype(np.float64) - vision)
    cones = cone_cosines(vision, text)
    return {
        "gap_mean": mean,
        "gap_smoothed": smoothed,
        "cosine_mean_smoothed": cosine,
        "text_mean": text.mean(axis=0, dtype=np.float64),
        "vision_mean": vision.mean(axis=0, dtype=np.float64),
        "score": spot.score,
        "semantic": float(spot.semantic.mean()),
        "geometric": float(spot.geometric.mean()),
        "per_sample": spot.per_sample,
        "singular_values": values.singular_values,
        "singular_values_centred": values.singular_values_centred,
        "vision_cosine": cones.vision,
        "text_cosine": cones.text,
    }


def _check_states(
    file: h5py.File, path: Path, size: int, heldout: int, neighbours: int
) -> list[str]:
    """Check everything that can be known before a state is read; return the images' names."""
    missing = [name for name in ("text", "vision", "image_id") if name not in file]
    if missing:
        raise GapinitError(
            f"{path}: dataset '{missing[0]}' is missing. Delete it and run the states stage again."
        )
    shape, other, ids = file["text"].shape, file["vision"].shape, file["image_id"].shape
    if len(shape) != 3 or shape != other or ids != shape[1:2] or 0 in shape:
        raise GapinitError(
            f"{path}: text has shape {shape}, vision {other}, image_id {ids}; expected "
            "(layers, pairs, width) twice and (pairs,)"
        )
    for name, value, least in (("size", size, 2), ("heldout", heldout, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise GapinitError(
                f"{name}: expected a whole number of at least {least}, found {value!r}"
            )
    if size + heldout > shape[1]:
        raise GapinitError(
            f"{path}: holds {shape[1]} pairs, but the calibration size {size} and {heldout} "
            f"held-out pairs need {size + heldout}. Extract states for more pairs, or lower either."
        )
    check_neighbours(neighbours, size, f"neighbours (calibration size {size})")
    found = file["image_id"][: size + heldout]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in found.tolist()]


def _read_layer(
    file: h5py.File, path: Path, modality: str, layer: int, images: list[str]
) -> FloatArray:
    states = np.asarray(file[modality][layer, : len(images)])
    for block in row_blocks(*states.shape):
        finite = np.isfinite(states[block]).all(axis=1)
        good = finite & (states[block] != 0).any(axis=1)
        if not good.all():
            index = int(np.argmin(good))
            sample = block.start + index
            problem = "is zero" if finite[index] else "has a non-finite entry (NaN or infinity)"
            raise GapinitError(
                f"{path}: layer {layer}, sample {sample} (image_id {images[sample]}): the "
                f"{modality} state {problem}. Leave that image out, or run the states stage in "
                "higher precision."
            )
    return states


def _store(file: h5py.File, measured: Mapping[str, Any], layer: int, layers: int) -> None:
    for name, value in measured.items():
        array = np.asarray(value, dtype=np.float64)
        if layer == 0:
            file.create_dataset(name, shape=(layers, *array.shape), dtype=np.float64)
        file[name][layer] = array


def _weighted_gap(text: FloatArray, vision: FloatArray, weights: Float64Array) -> Float64Array:
    """Return the sum over i of w_i (h_t,i - h_v,i): differences first, so that offsets cancel."""
    total = np.zeros(text.shape[1])
    for block in row_blocks(*text.shape):
        gaps = text[block].astype(np.float64)
        gaps -= vision[block]
        total += weights[block] @ gaps
    return total


def _cosines_to_mean(
    states: FloatArray, direction: Float64Array, centre: Float64Array, name: str
) -> Float64Array:
    unit = direction / _length(direction, name)
    cosines = np.empty(len(states))
    for block in row_blocks(*states.shape):
        offsets = states[block] - centre
        lengths = np.linalg.norm(offsets, axis=1)
        if not lengths.all():
            sample = block.start + int(np.argmin(lengths))
            raise GapinitError(f"{name}: sample {sample} is the mean of both modalities: no angle")
        cosines[block] = offsets @ unit / lengths
    return np.clip(cosines, -1.0, 1.0)


def _length(vector: Float64Array, origin: str) -> float:
    length = float(np.linalg.norm(vector))
    if length == 0.0:
        raise GapinitError(
            f"{origin}: the gap between text and vision is zero and has no direction. Check that "
            "the two modalities do not have the same states."
        )
    return length


def _cosine(first: Float64Array, second: Float64Array, origin: str) -> float:
    value = first @ second / (_length(first, origin) * _length(second, origin))
    return float(np.clip(value, -1.0, 1.0))
