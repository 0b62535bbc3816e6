"""Stage `gap`: from states files to the gap file, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from gapinit.artifacts.artifacts import create_hdf5, digest, hdf5_inputs, open_hdf5, sha256
from gapinit.artifacts.shards import STATES_AXES, open_shards, shard_sets
from gapinit.config.versions import VERSIONS
from gapinit.errors import GapinitError
from gapinit.gap.geometry import cone_cosines, gap_cosine, gap_norm, spectrum
from gapinit.gap.neighbours import Float64Array, FloatArray
from gapinit.gap.options import check_count
from gapinit.gap.spot import spot_gap
from gapinit.gap.vector import mean_gap, weighted_gap

if TYPE_CHECKING:
    import h5py

Smoothing = Literal["spot", "mean"]


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
    fingerprint: str | None = None
    """The backbone's `ModelFingerprint` as JSON; None: the states file has none."""


DATASETS = tuple(field.name for field in fields(GapFile))[:-2]
SHARED_INPUTS = ("backbone", "pooling", "context")
"""Recorded inputs that states files of one mixture must have in common."""


class _Source(NamedTuple):
    """One states file of a mixture."""

    paths: Sequence[Path]
    """The file, or its shards."""
    file: h5py.File
    rows: slice
    """Which rows of the mixture its pairs take, in their own order."""
    pairs: int
    """How many pairs are taken from it: its first ones."""


def estimate_gap_file(
    states: Sequence[Path],
    output: Path,
    *,
    size: int,
    heldout: int,
    neighbours: int,
    alpha_semantic: float,
    alpha_geometric: float,
    smoothing: Smoothing,
) -> None:
    """Estimate the gap of every layer from one or several states files; write the gap artifact.

    The first `size` pairs are the calibration set, so that smaller sets are part of larger ones;
    the next `heldout` pairs (0 for none) give a second gap that shares no pair with the first.
    All shards of one extraction count as one file. Several files are a mixture: it takes a pair of
    each file in turn, so that every prefix, and the held-out sample too, has equal parts.
    `smoothing` says which mean becomes `gap`: "spot" (of the smoothed gaps) or "mean" (plain).

    Reads HDF5 of kind "states" (`vision`, `text` (L, N, d) float32; `image_id` (N,)), one layer at
    a time; writes HDF5 of kind "gap" with the datasets of `GapFile`. `GapinitError` names the file
    and the layer whose gap or score cannot be measured, the file that holds too few pairs, and
    both files where two cannot be mixed.

    Source: Zhao et al., section 4.2, Algorithm 1, Appendices C and G.4; mixture: Appendix D.2.
    """
    groups = shard_sets(states, "states")
    # A mixture smaller than its number of files would leave one out.
    check_count("size", size, max(2, len(groups)))
    check_count("heldout", heldout, 0)
    with ExitStack() as stack:
        files = [stack.enter_context(open_shards(group, "states", STATES_AXES)) for group in groups]
        sources = _mixture(groups, files, size, heldout)
        inputs = {
            "version": VERSIONS["gap"],
            "size": size,
            "heldout": heldout,
            "neighbours": neighbours,
            "alpha_semantic": alpha_semantic,
            "alpha_geometric": alpha_geometric,
            "smoothing": smoothing,
            "heldout_shared_images": _shared_images(sources, size),
            **_provenance(sources),
        }
        target = stack.enter_context(create_hdf5(output, "gap", inputs))
        with open_hdf5(states[0], "states") as first:  # shards that are opened as one lack it
            if "fingerprint" in first:
                target["fingerprint"] = first["fingerprint"][()]
        layers = files[0]["text"].shape[0]
        for layer in range(layers):
            text, vision = (_read_layer(sources, name, layer) for name in ("text", "vision"))
            try:
                measured = _measure_layer(
                    text[:size], vision[:size], neighbours, alpha_semantic, alpha_geometric
                )
                used = measured["gap_smoothed" if smoothing == "spot" else "gap_mean"]
                measured |= {"gap": used, "gap_norm": gap_norm(used, "calibration pairs")}
                if heldout:
                    measured |= _measure_heldout(used, text[size:], vision[size:])
            except GapinitError as error:
                origin = " + ".join(map(str, states))
                raise GapinitError(f"{origin}: layer {layer}: {error}") from None
            _store(target, measured, layer, layers)


def read_gap(path: Path) -> GapFile:
    """Read a gap artifact; `GapinitError` if it is missing, damaged or of another kind."""
    with open_hdf5(path, "gap") as file:
        content: dict[str, Any] = {
            name: file[name][:] if name in file else None for name in DATASETS
        }
        known = file["fingerprint"].asstr()[()] if "fingerprint" in file else None
        return GapFile(**content, inputs=hdf5_inputs(file), fingerprint=known)


def _mixture(
    groups: Sequence[Sequence[Path]], files: Sequence[h5py.File], size: int, heldout: int
) -> list[_Source]:
    """Share the pairs out among the files; refuse files that cannot be mixed or are too short."""
    sources = []
    recorded = [hdf5_inputs(file) for file in files]
    for index, (paths, file) in enumerate(zip(groups, files, strict=True)):
        for what in SHARED_INPUTS:
            first, other = recorded[0].get(what), recorded[index].get(what)
            if first != other:
                raise GapinitError(
                    f"{groups[0][0]} and {paths[0]} cannot be mixed: {what} {first!r} and "
                    f"{other!r}, expected the same. Extract both with one backbone and options."
                )
        # ASSUME: the paper says "50% COCO, 50% Flickr30k" and no more. Pairs alternate, the first
        # file first: every prefix is half of each, and where it is odd the first has one more.
        rows = slice(index, size + heldout, len(files))
        wanted, found = len(range(*rows.indices(size + heldout))), len(file["image_id"])
        if wanted > found:
            share = "" if len(files) == 1 else f" from this one of {len(files)} files"
            raise GapinitError(
                f"{paths[0]}: holds {found} pairs, but the calibration size {size} and {heldout} "
                f"held-out pairs need {wanted}{share}. Extract states for more pairs, or lower "
                "either."
            )
        sources.append(_Source(paths, file, rows, wanted))
    return sources


def _shared_images(sources: Sequence[_Source], size: int) -> int:
    """Count the images on both sides of the cut between calibration and held-out pairs.

    An image is its id in its own file: two datasets may use one id for different images.
    """
    images: list[Any] = [None] * sum(source.pairs for source in sources)
    for index, source in enumerate(sources):
        ids = source.file["image_id"][: source.pairs].tolist()
        images[source.rows] = [(index, image) for image in ids]
    return len(set(images[:size]) & set(images[size:]))


def _provenance(sources: Sequence[_Source]) -> dict[str, Any]:
    """Return what the sources are and were made from; refuse a file that is named twice."""
    entries: dict[str, Any] = {}
    for source in sources:
        shards = [sha256(path) for path in source.paths]
        found = shards[0] if len(shards) == 1 else digest(shards)
        if found in entries:
            first = sources[list(entries).index(found)].paths[0]
            raise GapinitError(
                f"states: {first} and {source.paths[0]} are the same file twice, so that every "
                "pair would be its own nearest neighbour. Name each states file once."
            )
        made_from = hdf5_inputs(source.file)
        entries[found] = {"sha256": found, "pairs": source.pairs, "inputs": made_from}
    backbone = hdf5_inputs(sources[0].file).get("backbone")
    return {"backbone": backbone, "states": list(entries.values())}


def _read_layer(sources: Sequence[_Source], modality: str, layer: int) -> FloatArray:
    """Return one layer's states of the pairs that are used, (size + heldout, d)."""
    parts = [source.file[modality][layer, : source.pairs] for source in sources]
    states: FloatArray = np.empty((sum(map(len, parts)), parts[0].shape[1]), parts[0].dtype)
    for part, source in zip(parts, sources, strict=True):
        states[source.rows] = part
    return states


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
    mean = mean_gap(text, vision)
    smoothed = weighted_gap(text, vision, spot.weights)
    values = spectrum(text.astype(np.float64) - vision)
    cosine = gap_cosine(mean, smoothed, "calibration pairs")
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


def _measure_heldout(gap: Float64Array, text: FloatArray, vision: FloatArray) -> dict[str, Any]:
    heldout = mean_gap(text, vision)
    return {
        "heldout_gap": heldout,
        "cosine_heldout": gap_cosine(gap, heldout, "held-out pairs"),
    }


def _store(file: h5py.File, measured: Mapping[str, Any], layer: int, layers: int) -> None:
    for name, value in measured.items():
        array = np.asarray(value, dtype=np.float64)
        if layer == 0:
            file.create_dataset(name, shape=(layers, *array.shape), dtype=np.float64)
        file[name][layer] = array
