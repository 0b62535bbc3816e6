"""Stage `gap`: from states files to the gap file, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from gapinit.artifacts.artifacts import create_hdf5, digest, hdf5_inputs, open_hdf5, sha256
from gapinit.artifacts.shards import STATES_AXES, open_shards, shard_sets
from gapinit.config.versions import VERSIONS
from gapinit.errors import GapinitError
from gapinit.gap.geometry import cone_cosines, gap_cosine, gap_norm, spectrum
from gapinit.gap.neighbours import FloatArray, check_neighbours, row_blocks
from gapinit.gap.spot import check_weight, spot_gap
from gapinit.gap.vector import mean_gap, weighted_gap

if TYPE_CHECKING:
    import h5py

Float64Array = npt.NDArray[np.float64]
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


OPTIONAL_DATASETS = ("heldout_gap", "cosine_heldout")
DATASETS = tuple(field.name for field in fields(GapFile))[:-2]
SHARED_INPUTS = ("backbone", "pooling", "context")
"""What states files must have in common, by their recorded inputs, before they are mixed."""


@dataclass(frozen=True, eq=False)
class _Source:
    """One open states file, and the images of the pairs that are taken from it."""

    path: Path
    """Of several shards, the first."""
    parts: Sequence[Path]
    file: h5py.File
    images: list[str]


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
    Shards of one extraction count as the file that they are parts of. Several files are a mixture:
    a pair of each in turn, so that every prefix of it, and the held-out sample too, is made of
    equal parts.
    `smoothing` says which mean becomes `gap`: "spot" (of the smoothed gaps) or "mean" (plain).

    Reads HDF5 of kind "states" (`vision`, `text` (L, N, d) float32; `image_id` (N,)), one layer at
    a time; writes HDF5 of kind "gap" with the datasets of `GapFile`. `GapinitError` names file,
    layer and image for a state that is not finite or zero, the layer for a gap that is zero, and
    both files for two that cannot be mixed.

    Source: Zhao et al., section 4.2, Algorithm 1, Appendices C and G.4; mixture: Appendix D.2.
    """
    paths = [Path(path) for path in states]
    groups = shard_sets(paths, "states")
    _check_options(groups, size, heldout, neighbours, smoothing)
    check_weight("alpha_semantic", alpha_semantic)
    check_weight("alpha_geometric", alpha_geometric)
    with ExitStack() as stack:
        sources = [
            _check_states(_opened(stack, group), group, size, heldout, turn)
            for turn, group in zip(_turns(len(groups), size + heldout), groups, strict=True)
        ]
        for other in sources[1:]:
            _check_mixable(sources[0], other)
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
        with create_hdf5(output, "gap", inputs) as target:
            with open_hdf5(paths[0], "states") as first:
                if "fingerprint" in first:
                    target["fingerprint"] = first["fingerprint"][()]
            layers = sources[0].file["text"].shape[0]
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
                    origin = " + ".join(map(str, paths))
                    raise GapinitError(f"{origin}: layer {layer}: {error}") from None
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
        known = file["fingerprint"].asstr()[()] if "fingerprint" in file else None
        return GapFile(**content, inputs=hdf5_inputs(file), fingerprint=known)


def _turns(sources: int, pairs: int) -> list[slice]:
    """Return, for each source, which rows of the mixture its pairs take, in their own order."""
    # ASSUME: the paper says "50% COCO, 50% Flickr30k" and no more. Pairs alternate, the first
    # file first: every prefix is half of each, and where it is odd the first has one more.
    return [slice(index, pairs, sources) for index in range(sources)]


def _shared_images(sources: Sequence[_Source], size: int) -> int:
    """Count the images on both sides of the cut between calibration and held-out pairs.

    An image is its id in its own file: two datasets may use one id for different images.
    """
    total = sum(len(source.images) for source in sources)
    images: list[tuple[int, str]] = [(0, "")] * total
    for index, turn in enumerate(_turns(len(sources), total)):
        images[turn] = [(index, image) for image in sources[index].images]
    return len(set(images[:size]) & set(images[size:]))


def _provenance(sources: Sequence[_Source]) -> dict[str, Any]:
    digests = [_digest(source.parts) for source in sources]
    for index, found in enumerate(digests):
        first = digests.index(found)
        if first != index:
            raise GapinitError(
                f"states: {sources[first].path} and {sources[index].path} are the same file twice, "
                "so that every pair would be its own nearest neighbour. Name each states file once."
            )
    recorded = [hdf5_inputs(source.file) for source in sources]
    return {
        "backbone": recorded[0].get("backbone"),
        "states": [
            {"sha256": found, "pairs": len(source.images), "inputs": made_from}
            for found, source, made_from in zip(digests, sources, recorded, strict=True)
        ],
    }


def _opened(stack: ExitStack, paths: Sequence[Path]) -> h5py.File:
    """Open one extraction's file, or its shards as one; of a whole file, whatever it holds."""
    if len(paths) == 1:
        return stack.enter_context(open_hdf5(paths[0], "states"))
    return stack.enter_context(open_shards(paths, "states", STATES_AXES))


def _digest(paths: Sequence[Path]) -> str:
    found = [sha256(path) for path in paths]
    return found[0] if len(found) == 1 else digest(found)


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


def _check_options(
    paths: Sequence[Sequence[Path]], size: int, heldout: int, neighbours: int, smoothing: str
) -> None:
    """Check everything that can be known before a state is read."""
    if not paths:
        raise GapinitError("states: expected at least one states file, found none")
    if smoothing not in get_args(Smoothing):
        raise GapinitError(f"smoothing: expected 'spot' or 'mean', found {smoothing!r}")
    # A mixture smaller than its number of files would leave one out.
    for name, value, least in (("size", size, max(2, len(paths))), ("heldout", heldout, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise GapinitError(
                f"{name}: expected a whole number of at least {least}, found {value!r}"
            )
    check_neighbours(neighbours, size, f"neighbours (calibration size {size})")


def _check_states(
    file: h5py.File, paths: Sequence[Path], size: int, heldout: int, turn: slice
) -> _Source:
    """Check everything that can be known of one file before a state is read."""
    path = paths[0]
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
    wanted = len(range(turn.start, turn.stop, turn.step))
    if wanted > shape[1]:
        share = "" if turn.step == 1 else f" from this one of {turn.step} files"
        raise GapinitError(
            f"{path}: holds {shape[1]} pairs, but the calibration size {size} and {heldout} "
            f"held-out pairs need {wanted}{share}. Extract states for more pairs, or lower either."
        )
    found = file["image_id"][:wanted].tolist()
    return _Source(
        path,
        paths,
        file,
        [item.decode() if isinstance(item, bytes) else str(item) for item in found],
    )


def _check_mixable(first: _Source, other: _Source) -> None:
    """Refuse two files whose states do not lie in one space."""
    both = f"{first.path} and {other.path} cannot be mixed"
    advice = "Extract both with the same backbone and options."
    shapes = [source.file["text"].shape for source in (first, other)]
    for what, axis in (("layers", 0), ("width", 2)):
        if shapes[0][axis] != shapes[1][axis]:
            raise GapinitError(
                f"{both}: {what} {shapes[0][axis]} and {shapes[1][axis]}, expected the same. "
                + advice
            )
    recorded = [hdf5_inputs(source.file) for source in (first, other)]
    if "backbone" not in recorded[0]:
        raise GapinitError(f"{both}: {first.path} does not record its backbone. {advice}")
    for what in SHARED_INPUTS:
        found = [made_from.get(what) for made_from in recorded]
        if found[0] != found[1]:
            raise GapinitError(
                f"{both}: {what} {found[0]!r} and {found[1]!r}, expected the same. {advice}"
            )


def _read_layer(sources: Sequence[_Source], modality: str, layer: int) -> FloatArray:
    """Read one layer's states of the pairs that are used, each file's on its own turn."""
    total = sum(len(source.images) for source in sources)
    datasets = [source.file[modality] for source in sources]
    states: FloatArray = np.empty(
        (total, datasets[0].shape[2]), np.result_type(*(dataset.dtype for dataset in datasets))
    )
    for turn, source in zip(_turns(len(sources), total), sources, strict=True):
        states[turn] = _read_states(source, modality, layer)
    return states


def _read_states(source: _Source, modality: str, layer: int) -> FloatArray:
    states = np.asarray(source.file[modality][layer, : len(source.images)])
    for block in row_blocks(*states.shape):
        finite = np.isfinite(states[block]).all(axis=1)
        good = finite & (states[block] != 0).any(axis=1)
        if not good.all():
            index = int(np.argmin(good))
            sample = block.start + index
            problem = "is zero" if finite[index] else "has a non-finite entry (NaN or infinity)"
            raise GapinitError(
                f"{source.path}: layer {layer}, sample {sample} (image_id "
                f"{source.images[sample]}): the {modality} state {problem}. Leave that image out, "
                "or run the states stage in higher precision."
            )
    return states


def _store(file: h5py.File, measured: Mapping[str, Any], layer: int, layers: int) -> None:
    for name, value in measured.items():
        array = np.asarray(value, dtype=np.float64)
        if layer == 0:
            file.create_dataset(name, shape=(layers, *array.shape), dtype=np.float64)
        file[name][layer] = array
