"""The gap stage, from states files to the gap file; mixtures of several states files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gapinit.artifacts.artifacts import create_hdf5, hdf5_inputs, open_hdf5, sha256
from gapinit.config.versions import VERSIONS
from gapinit.errors import GapinitError
from gapinit.gap.gap_file import DATASETS, GapFile, estimate_gap_file, read_gap
from gapinit.gap.geometry import cone_cosines, spectrum
from gapinit.gap.spot import spot_gap
from gapinit.gap.vector import gap_vector

LAYERS, PAIRS, WIDTH = 3, 40, 6
OPTIONS: dict[str, Any] = {
    "size": 24,
    "heldout": 12,
    "neighbours": 5,
    "alpha_semantic": 1.0,
    "alpha_geometric": 0.5,
    "smoothing": "spot",
}


def pairs(seed: int, number: int = 40, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    vision = generator.standard_normal((number, width)) * np.linspace(0.5, 2, width)
    # Skewed, so that some pairs are everybody's neighbours and others nobody's.
    text = 0.6 * vision + generator.exponential(1.0, (number, width)) + 0.5
    return text, vision


def write_states(
    path: Path, text: np.ndarray, vision: np.ndarray, images: Any = None, **inputs: Any
) -> Path:
    with create_hdf5(path, "states", {"backbone": "test"} | inputs) as file:
        file["text"] = text.astype(np.float32)
        file["vision"] = vision.astype(np.float32)
        file["image_id"] = np.arange(900, 900 + text.shape[1]) if images is None else images
    return path


@pytest.fixture
def layers() -> tuple[np.ndarray, np.ndarray]:
    text, vision = zip(*(pairs(layer, PAIRS, WIDTH) for layer in range(LAYERS)), strict=True)
    return np.stack(text).astype(np.float32), np.stack(vision).astype(np.float32)


@pytest.fixture
def states(tmp_path: Path, layers: tuple[np.ndarray, np.ndarray]) -> Path:
    return write_states(tmp_path / "states.h5", *layers)


def estimate(*states: Path, **options: Any) -> GapFile:
    output = states[0].with_name("gap.h5")
    estimate_gap_file(states, output, **(OPTIONS | options))
    return read_gap(output)


def test_stage_equals_the_library(states: Path, layers: tuple[np.ndarray, np.ndarray]) -> None:
    found = estimate(states)
    for layer in range(LAYERS):
        text, vision = layers[0][layer][:24], layers[1][layer][:24]
        spot = spot_gap(text, vision, neighbours=5, alpha_geometric=0.5)
        plain, smoothed = gap_vector(text, vision), gap_vector(text, vision, neighbours=5)
        heldout = gap_vector(layers[0][layer][24:36], layers[1][layer][24:36])
        values = spectrum(text.astype(np.float64) - vision)
        cones = cone_cosines(vision, text)
        for name, expected in {
            "gap": smoothed,
            "gap_mean": plain,
            "gap_smoothed": smoothed,
            "gap_norm": np.linalg.norm(smoothed),
            "heldout_gap": heldout,
            "cosine_mean_smoothed": cosine(plain, smoothed),
            "cosine_heldout": cosine(smoothed, heldout),
            "score": spot.score,
            "semantic": spot.semantic.mean(),
            "geometric": spot.geometric.mean(),
            "per_sample": spot.per_sample,
            "singular_values": values.singular_values,
            "singular_values_centred": values.singular_values_centred,
            "vision_cosine": cones.vision,
            "text_cosine": cones.text,
            "text_mean": text.astype(np.float64).mean(axis=0),
            "vision_mean": vision.astype(np.float64).mean(axis=0),
        }.items():
            stored = getattr(found, name)
            assert stored.dtype == np.float64 and len(stored) == LAYERS, name
            np.testing.assert_allclose(stored[layer], expected, rtol=1e-11, err_msg=name)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_plain_mean_on_request(states: Path) -> None:
    found = estimate(states, smoothing="mean")
    np.testing.assert_array_equal(found.gap, found.gap_mean)
    assert not np.allclose(found.gap, found.gap_smoothed, rtol=1e-6)


def test_calibration_sets_are_nested(tmp_path: Path, layers: tuple[np.ndarray, ...]) -> None:
    whole = write_states(tmp_path / "whole.h5", *layers)
    # Other states after the 30th pair: nothing of the first 16 + 14 may change.
    other = [part.copy() for part in layers]
    for part in other:
        part[:, 30:] += 5
    changed = write_states(tmp_path / "changed.h5", *other)
    small = [estimate(path, size=16, heldout=14) for path in (whole, changed)]
    np.testing.assert_array_equal(small[0].gap, small[1].gap)
    np.testing.assert_array_equal(small[0].heldout_gap, small[1].heldout_gap)
    large = [estimate(path, size=20, heldout=14) for path in (whole, changed)]
    np.testing.assert_array_equal(large[0].gap, large[1].gap)
    assert not np.array_equal(large[0].heldout_gap, large[1].heldout_gap)
    np.testing.assert_allclose(small[0].text_mean, layers[0][:, :16].mean(axis=1), rtol=1e-5)


def test_provenance(tmp_path: Path, layers: tuple[np.ndarray, ...]) -> None:
    images = np.array([f"{number // 3}.jpg" for number in range(PAIRS)], dtype=object)
    states = write_states(tmp_path / "states.h5", *layers, images=images)
    inputs = estimate(states, size=25).inputs
    assert inputs["version"] == VERSIONS["gap"] and inputs["backbone"] == "test"
    made_from = {"sha256": sha256(states), "pairs": 37, "inputs": {"backbone": "test"}}
    assert inputs["states"] == [made_from]
    assert inputs["size"] == 25 and inputs["heldout"] == 12
    # Pairs 24 and 25 show the same image, one on either side of the cut.
    assert inputs["heldout_shared_images"] == 1
    with open_hdf5(states.with_name("gap.h5"), "gap") as file:
        assert hdf5_inputs(file)["smoothing"] == "spot"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 30}, "states.h5: holds 40 pairs, but the calibration size 30 and 12 held-out"),
        ({"size": 5}, "neighbours: 5 neighbours.*at most 4 neighbours, or at least 6"),
        ({"size": 1}, "size: expected a whole number of at least 2, found 1"),
        ({"heldout": -1}, "heldout: expected a whole number of at least 0, found -1"),
        ({"alpha_semantic": -1.0}, "alpha_semantic: expected a finite number of at least 0"),
        ({"alpha_geometric": np.nan}, "alpha_geometric: .*found nan"),
    ],
)
def test_stage_refuses(states: Path, options: dict, message: str) -> None:
    with pytest.raises(GapinitError, match=message):
        estimate(states, **options)
    assert not states.with_name("gap.h5").exists()


@pytest.mark.parametrize(
    ("modality", "pairs", "value", "message"),
    [
        (0, 7, np.nan, "h_text: sample 7 of 24 has a non-finite entry"),
        (1, 7, np.nan, "h_vision: sample 7 of 24 has a non-finite entry"),
        (0, 30, np.nan, "held-out pairs: the gap .* has the length nan"),
        (0, slice(None), None, "calibration pairs: the gap .* has the length 0"),
    ],
)
def test_the_layer_that_cannot_be_measured_is_named(
    tmp_path: Path,
    layers: tuple[np.ndarray, ...],
    modality: int,
    pairs: Any,
    value: float | None,
    message: str,
) -> None:
    layers[modality][2, pairs] = layers[1][2] if value is None else value
    states = write_states(tmp_path / "states.h5", *layers)
    with pytest.raises(GapinitError, match=f"states.h5: layer 2: {message}"):
        estimate(states)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["states.h5"]


def test_read_gap_refuses_other_files(states: Path) -> None:
    with pytest.raises(GapinitError, match="expected an HDF5 file of kind 'gap', found 'states'"):
        read_gap(states)


# Mixtures of several states files


@pytest.fixture
def other_layers() -> tuple[np.ndarray, np.ndarray]:
    """Return states of another domain: elsewhere, wider, with another gap."""
    found = [pairs(100 + layer, PAIRS, WIDTH) for layer in range(LAYERS)]
    text, vision = zip(*((2 * text - 3, 1.5 * vision + 2) for text, vision in found), strict=True)
    return np.stack(text).astype(np.float32), np.stack(vision).astype(np.float32)


@pytest.fixture
def files(
    tmp_path: Path,
    layers: tuple[np.ndarray, np.ndarray],
    other_layers: tuple[np.ndarray, np.ndarray],
) -> tuple[Path, Path]:
    return (
        write_states(tmp_path / "coco.h5", *layers),
        write_states(tmp_path / "flickr.h5", *other_layers),
    )


def in_turn(*parts: np.ndarray) -> np.ndarray:
    """Return (L, P * N, d): the first row of each part, the second of each, and so on."""
    rows = [part[:, index] for index in range(parts[0].shape[1]) for part in parts]
    return np.stack(rows, axis=1)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("size", "heldout"), [(25, 12), (16, 0)])
def test_a_mixture_is_one_file_with_the_pairs_in_turn(
    tmp_path: Path,
    files: tuple[Path, ...],
    layers: tuple[np.ndarray, ...],
    other_layers: tuple[np.ndarray, ...],
    count: int,
    size: int,
    heldout: int,
) -> None:
    parts = [layers, other_layers, tuple(part * 0.5 + 1 for part in layers)][:count]
    paths = [*files, write_states(tmp_path / "third.h5", *parts[-1])][:count]
    mixed = estimate(*paths, size=size, heldout=heldout)
    text, vision = (in_turn(*(part[modality] for part in parts)) for modality in (0, 1))
    single = estimate(write_states(tmp_path / "one.h5", text, vision), size=size, heldout=heldout)
    for name in DATASETS:
        np.testing.assert_array_equal(getattr(mixed, name), getattr(single, name), err_msg=name)
    assert (mixed.heldout_gap is None) == (heldout == 0)


@pytest.mark.parametrize("size", [2, 16, 17])
def test_a_mixture_is_half_of_each(
    files: tuple[Path, Path],
    layers: tuple[np.ndarray, ...],
    other_layers: tuple[np.ndarray, ...],
    size: int,
) -> None:
    # Held-out pairs start with the file whose turn it is, from its first unused pair.
    first, second = size - size // 2, size // 2
    mixed = estimate(*files, size=size, heldout=2, neighbours=1)
    for found, (start, stop), (other_start, other_stop) in [
        (mixed.gap_mean, (0, first), (0, second)),
        (mixed.heldout_gap, (first, first + 1), (second, second + 1)),
    ]:
        gaps = [
            np.subtract(*(part[:, start:stop].astype(np.float64) for part in layers)),
            np.subtract(
                *(part[:, other_start:other_stop].astype(np.float64) for part in other_layers)
            ),
        ]
        np.testing.assert_allclose(found, np.hstack(gaps).mean(axis=1), rtol=1e-12)
    made_from = mixed.inputs["states"]
    assert [entry["pairs"] for entry in made_from] == [first + 1, second + 1]
    assert [entry["sha256"] for entry in made_from] == [sha256(path) for path in files]


def test_an_image_is_an_id_in_a_file(
    tmp_path: Path, layers: tuple[np.ndarray, ...], other_layers: tuple[np.ndarray, ...]
) -> None:
    # Of 8 + 4 mixed pairs, each file gives 4 + 2. The ids of one file's held-out pairs are those
    # of the other's calibration pairs: other images. Only "7" is on both sides in one file.
    ids = [["0", "1", "2", "3", "4", "5"], ["4", "5", "7", "8", "7", "3"]]
    paths = [
        write_states(
            tmp_path / f"{index}.h5", *part, images=np.array(ids[index] * 7)[:PAIRS].astype(object)
        )
        for index, part in enumerate((layers, other_layers))
    ]
    assert estimate(*paths, size=8, heldout=4).inputs["heldout_shared_images"] == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"backbone": "b"}, "backbone 'test' and 'b', expected the same"),
        ({"pooling": "last"}, "pooling None and 'last', expected"),
        ({"context": "separate"}, "context None and 'separate', expected"),
    ],
)
def test_files_that_cannot_be_mixed(
    tmp_path: Path,
    files: tuple[Path, Path],
    other_layers: tuple[np.ndarray, ...],
    inputs: dict[str, str],
    message: str,
) -> None:
    other = write_states(tmp_path / "other.h5", *other_layers, **inputs)
    expected = rf"coco\.h5 and \S*other\.h5 cannot be mixed: {message}"
    with pytest.raises(GapinitError, match=expected):
        estimate(files[0], other)
    # The odd one may also be the third.
    with pytest.raises(GapinitError, match=expected):
        estimate(*files, other)
    assert not (tmp_path / "gap.h5").exists()


def test_one_file_twice_is_no_mixture(tmp_path: Path, files: tuple[Path, Path]) -> None:
    copy = tmp_path / "copy.h5"
    copy.write_bytes(files[0].read_bytes())
    for twice in (files[0], copy):
        with pytest.raises(GapinitError, match=r"coco\.h5 and .*h5 are the same file twice"):
            estimate(files[0], twice)
    assert not (tmp_path / "gap.h5").exists()


def test_the_file_of_a_mixture_that_is_too_short_is_named(
    tmp_path: Path, files: tuple[Path, Path], layers: tuple[np.ndarray, ...]
) -> None:
    short = write_states(tmp_path / "short.h5", *(part[:, :17] for part in layers))
    message = (
        r"short\.h5: holds 17 pairs, but .* size 24 and 12 .* need 18 from this one of 2 files"
    )
    for order in [(files[1], short), (short, files[1])]:
        with pytest.raises(GapinitError, match=message):
            estimate(*order)
    estimate(files[1], short, size=24, heldout=11)
    with pytest.raises(GapinitError, match="size: expected a whole number of at least 3, found 2"):
        estimate(*files, short, size=2, heldout=0, neighbours=1)


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path) -> None:
    import tracemalloc

    def peak(layers: int) -> int:
        generator = np.random.default_rng(0)
        paths = []
        for name in ("a", "b"):
            shape = (layers, 200, 64)
            states = [generator.standard_normal(shape) + offset for offset in (0, 1)]
            paths.append(write_states(tmp_path / f"{name}{layers}.h5", *states))
        del states
        tracemalloc.start()
        estimate_gap_file(paths, tmp_path / "gap.h5", **(OPTIONS | {"size": 350, "heldout": 40}))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)  # imports and caches
    few, many = peak(2), peak(24)
    one_layer = 2 * 2 * 200 * 64 * 4
    assert many - few < one_layer
