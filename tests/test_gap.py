"""Gap vectors, spectra, cones, and the gap stage from states file to gap file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gapinit.artifacts import create_hdf5, hdf5_inputs, open_hdf5, sha256
from gapinit.errors import GapinitError
from gapinit.gap import (
    GapFile,
    cone_cosines,
    estimate_gap_file,
    explained_share,
    gap_vector,
    read_gap,
    spectrum,
)
from gapinit.spot import spot_gap

LAYERS, PAIRS, WIDTH = 3, 40, 6
OPTIONS: dict[str, Any] = {
    "size": 24,
    "heldout": 12,
    "neighbours": 5,
    "alpha_semantic": 1.0,
    "alpha_geometric": 0.5,
    "smoothing": "spot",
    "exclude_bottom": 1,
    "num_layers": 2,
}


def pairs(seed: int, number: int = 40, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    vision = generator.standard_normal((number, width)) * np.linspace(0.5, 2, width)
    # Skewed, so that some pairs are everybody's neighbours and others nobody's.
    text = 0.6 * vision + generator.exponential(1.0, (number, width)) + 0.5
    return text, vision


def write_states(path: Path, text: np.ndarray, vision: np.ndarray, images: Any = None) -> Path:
    with create_hdf5(path, "states", {"backbone": "test"}) as file:
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


def estimate(states: Path, **options: Any) -> GapFile:
    output = states.with_name("gap.h5")
    estimate_gap_file(states, output, **(OPTIONS | options))
    return read_gap(output)


# The vector


def test_plain_mean() -> None:
    text, vision = pairs(0)
    expected = [sum(row[c] for row in (text - vision).tolist()) / 40 for c in range(6)]
    gap = gap_vector(text, vision)
    assert gap.shape == (6,) and gap.dtype == np.float64
    np.testing.assert_allclose(gap, expected, rtol=1e-13)


@pytest.mark.parametrize("k", [1, 4, 39])
def test_smoothed_mean_by_definition(k: int) -> None:
    text, vision = pairs(1)
    joint = np.hstack([vision, text])
    smoothed = np.zeros((40, 6))
    for i in range(40):
        near = sorted((np.linalg.norm(joint[i] - joint[j]), j) for j in range(40) if j != i)[:k]
        for _, j in near:
            smoothed[i] += (text[j] - vision[j]) / k
    np.testing.assert_allclose(
        gap_vector(text, vision, neighbours=k), smoothed.mean(axis=0), rtol=1e-11
    )


def test_smoothed_mean_differs_where_neighbourhoods_are_not_symmetric() -> None:
    text, vision = pairs(2)
    plain, smoothed = gap_vector(text, vision), gap_vector(text, vision, neighbours=3)
    assert np.linalg.norm(plain - smoothed) > 0.02 * np.linalg.norm(plain)
    # With all others as neighbours every pair counts alike, and the two agree.
    np.testing.assert_allclose(gap_vector(text, vision, neighbours=39), plain, rtol=1e-12)


def test_shuffled_pairs_keep_the_plain_mean() -> None:
    text, vision = pairs(3)
    shuffled = vision[np.random.default_rng(0).permutation(40)]
    np.testing.assert_allclose(gap_vector(text, shuffled), gap_vector(text, vision), rtol=1e-12)
    smoothed = gap_vector(text, vision, neighbours=3)
    assert not np.allclose(gap_vector(text, shuffled, neighbours=3), smoothed, rtol=1e-3)


@pytest.mark.parametrize("neighbours", [None, 4])
def test_geometry_of_the_vector(neighbours: int | None) -> None:
    text, vision = pairs(4)
    gap = gap_vector(text, vision, neighbours=neighbours)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))
    for name, found, expected in [
        ("swap", gap_vector(vision, text, neighbours=neighbours), -gap),
        ("shift both", gap_vector(text + 9, vision + 9, neighbours=neighbours), gap),
        ("shift one", gap_vector(text + 9, vision, neighbours=neighbours), gap + 9),
        ("scale", gap_vector(3 * text, 3 * vision, neighbours=neighbours), 3 * gap),
        (
            "rotate",
            gap_vector(text @ rotation, vision @ rotation, neighbours=neighbours),
            gap @ rotation,
        ),
    ]:
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10, err_msg=name)


def test_offsets_cancel() -> None:
    # 1e4 is common to both modalities; the gap is 1e-3 and must keep its digits in float32.
    generator = np.random.default_rng(5)
    vision = (1e4 + generator.integers(0, 8, (500, 4)) / 1024).astype(np.float32)
    text = (vision.astype(np.float64) + 1 / 1024).astype(np.float32)
    np.testing.assert_array_equal(gap_vector(text, vision), np.full(4, 1 / 1024))


@pytest.mark.parametrize("neighbours", [None, 4])
@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16"])
def test_torch_in_torch_out(name: str, neighbours: int | None) -> None:
    import torch

    text, vision = (torch.tensor(part).to(getattr(torch, name)) for part in pairs(6))
    gap = gap_vector(text, vision, neighbours=neighbours)
    assert isinstance(gap, torch.Tensor) and gap.dtype == torch.float64
    assert gap.device == text.device
    expected = gap_vector(text.double().numpy(), vision.double().numpy(), neighbours=neighbours)
    np.testing.assert_allclose(gap.numpy(), expected, rtol=1e-12)


def test_vector_errors() -> None:
    text, vision = pairs(7)
    with pytest.raises(GapinitError, match="at most 39"):
        gap_vector(text, vision, neighbours=40)
    with pytest.raises(GapinitError, match=r"\(39, 6\)"):
        gap_vector(text[1:], vision)
    text[3, 1] = np.nan
    with pytest.raises(GapinitError, match="h_text: sample 3"):
        gap_vector(text, vision)


# Spectrum and cones


def test_spectrum_from_the_gram_matrix() -> None:
    gaps = np.subtract(*pairs(8, 30, 5))
    found = spectrum(gaps)
    centred = gaps - gaps.mean(axis=0)
    for values, share, matrix in [
        (found.singular_values, found.explained, gaps),
        (found.singular_values_centred, found.explained_centred, centred),
    ]:
        energy = np.sort(np.linalg.eigvalsh(matrix.T @ matrix))[::-1]
        np.testing.assert_allclose(values**2, energy, rtol=1e-10)
        np.testing.assert_allclose(share, energy / np.trace(matrix.T @ matrix), rtol=1e-10)


def test_spectrum_of_a_pure_translation() -> None:
    found = spectrum(np.tile([[3.0, 4.0]], (5, 1)))
    np.testing.assert_allclose(found.explained, [1.0, 0.0], atol=1e-15)
    np.testing.assert_array_equal(found.explained_centred, [0.0, 0.0])


def test_cone_cosines_by_definition() -> None:
    text, vision = pairs(9)
    found = cone_cosines(vision, text)
    centre = np.vstack([vision, text]).mean(axis=0)
    for cosines, states in [(found.vision, vision), (found.text, text)]:
        mean = states.mean(axis=0) - centre
        for i, cosine in enumerate(cosines):
            offset = states[i] - centre
            expected = offset @ mean / np.linalg.norm(offset) / np.linalg.norm(mean)
            assert cosine == pytest.approx(expected, abs=1e-12)


def test_narrow_cones_are_narrow() -> None:
    text, vision = pairs(10)
    wide, narrow = cone_cosines(vision, text), cone_cosines(vision, text + 1e3)
    assert narrow.text.min() > 0.999 > wide.text.min()


def test_cone_without_axis() -> None:
    vision = pairs(11)[1]
    with pytest.raises(GapinitError, match="gap between text and vision is zero"):
        cone_cosines(vision, vision)


# The stage


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


def test_without_held_out_pairs(states: Path) -> None:
    found = estimate(states, size=40, heldout=0)
    assert found.heldout_gap is None and found.cosine_heldout is None
    assert found.per_sample.shape == (LAYERS, 40)


def test_provenance(tmp_path: Path, layers: tuple[np.ndarray, ...]) -> None:
    images = np.array([f"{number // 3}.jpg" for number in range(PAIRS)], dtype=object)
    states = write_states(tmp_path / "states.h5", *layers, images=images)
    inputs = estimate(states, size=25).inputs
    assert inputs["states"] == sha256(states)
    assert inputs["states_inputs"] == {"backbone": "test"}
    assert inputs["size"] == 25 and inputs["heldout"] == 12
    # Pairs 24 and 25 show the same image, one on either side of the cut.
    assert inputs["heldout_shared_images"] == 1
    with open_hdf5(states.with_name("gap.h5"), "gap") as file:
        assert hdf5_inputs(file)["smoothing"] == "spot"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 30}, "states.h5: holds 40 pairs, but the calibration size 30 and 12 held-out"),
        ({"size": 5}, r"calibration size 5\): 5 neighbours.*at most 4 neighbours, or at least 6"),
        ({"size": 1}, "size: expected a whole number of at least 2, found 1"),
        ({"heldout": -1}, "heldout: expected a whole number of at least 0, found -1"),
        ({"smoothing": "median"}, "smoothing: expected 'spot' or 'mean', found 'median'"),
        ({"num_layers": 4}, "num_layers: 4 layers asked for, but the decoder has 3"),
        ({"exclude_bottom": 2}, "without the bottom 2 the decoder has 1"),
    ],
)
def test_stage_refuses(states: Path, options: dict, message: str) -> None:
    with pytest.raises(GapinitError, match=message):
        estimate(states, **options)
    assert not states.with_name("gap.h5").exists()


@pytest.mark.parametrize("modality", [0, 1])
@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "has a non-finite entry"), (0.0, "is zero")]
)
@pytest.mark.parametrize("sample", [7, 30])
def test_bad_states_are_named(
    tmp_path: Path,
    layers: tuple[np.ndarray, ...],
    modality: int,
    value: float,
    message: str,
    sample: int,
) -> None:
    layers[modality][2, sample] = value
    states = write_states(tmp_path / "states.h5", *layers)
    name = ("text", "vision")[modality]
    expected = rf"layer 2, sample {sample} \(image_id {900 + sample}\): the {name} state {message}"
    with pytest.raises(GapinitError, match=expected):
        estimate(states)
    assert [path.name for path in tmp_path.iterdir()] == ["states.h5"]
    if sample == 30:
        estimate(states, size=20, heldout=10)  # not among the pairs that are used


def test_zero_gap_is_named(tmp_path: Path, layers: tuple[np.ndarray, ...]) -> None:
    layers[0][1] = layers[1][1]
    states = write_states(tmp_path / "states.h5", *layers)
    with pytest.raises(GapinitError, match=r"states.h5: layer 1: .*gap .* is zero"):
        estimate(states)


def test_shapes_that_do_not_match(tmp_path: Path, layers: tuple[np.ndarray, ...]) -> None:
    states = write_states(tmp_path / "states.h5", layers[0], layers[1][:, :-1])
    with pytest.raises(GapinitError, match=r"text has shape \(3, 40, 6\), vision \(3, 39, 6\)"):
        estimate(states)


def test_read_gap_refuses_other_files(states: Path, tmp_path: Path) -> None:
    with pytest.raises(GapinitError, match="expected an HDF5 file of kind 'gap', found 'states'"):
        read_gap(states)
    with create_hdf5(tmp_path / "old.h5", "gap", {}) as file:
        file["score"] = np.ones(3)
    with pytest.raises(GapinitError, match="old.h5: dataset 'gap' is missing"):
        read_gap(tmp_path / "old.h5")


def test_explained_share_works_row_by_row() -> None:
    shares = explained_share(np.array([[2.0, 1.0], [0.0, 0.0]]))
    np.testing.assert_allclose(shares, [[0.8, 0.2], [0.0, 0.0]])
