"""Figures 1c and 2 to 5: the files appear, and their CSV holds what the data say."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from gapinit.artifacts.artifacts import create_hdf5
from gapinit.errors import GapinitError
from gapinit.figures import figure1c, figure2, figure3, figure4, figure5
from gapinit.figures.toy import mean_alignment
from gapinit.gap.gap_file import estimate_gap_file, read_gap

from .plain_json import names

LAYERS, PAIRS, WIDTH = 5, 60, 24
SUFFIXES = ("pdf", "png", "svg", "csv")


@pytest.fixture(scope="module")
def gap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gap")
    generator = np.random.default_rng(0)
    with create_hdf5(folder / "states.h5", "states", {}) as file:
        vision = generator.standard_normal((LAYERS, PAIRS, WIDTH))
        noise = generator.standard_normal((LAYERS, PAIRS, WIDTH))
        file["vision"] = vision.astype(np.float32)
        file["text"] = (0.5 * vision + noise + 1.0).astype(np.float32)
        file["image_id"] = np.arange(PAIRS)
    for heldout in (0, 20):
        estimate_gap_file(
            [folder / "states.h5"],
            folder / f"gap{heldout}.h5",
            size=40,
            heldout=heldout,
            neighbours=10,
            alpha_semantic=1.0,
            alpha_geometric=1.0,
            smoothing="spot",
        )
    return folder / "gap20.h5"


def numbers(stem: Path) -> dict[str, list[str]]:
    with open(f"{stem}.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return {key: [row[key] for row in rows] for key in rows[0]}


def column(stem: Path, key: str) -> np.ndarray:
    return np.array([float(value) for value in numbers(stem)[key] if value])


def check_files(stem: Path) -> None:
    starts = {"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<?xml"}
    for suffix, start in starts.items():
        content = stem.with_name(f"{stem.name}.{suffix}").read_bytes()
        assert content.startswith(start) and len(content) > 3000
    assert names(stem.parent) == sorted(f"{stem.name}.{suffix}" for suffix in SUFFIXES)


def test_figure1c_separates_the_modalities_along_the_gap(gap: Path, tmp_path: Path) -> None:
    stem = tmp_path / "out" / "figure1c"
    figure1c.draw(gap.with_name("states.h5"), gap, stem)
    check_files(stem)
    kinds = np.array(numbers(stem)["kind"])
    points = column(stem, "along_gap")
    along = {kind: points[kinds == kind] for kind in ("vision", "text", "gap", "random")}
    assert len(along["vision"]) == len(along["text"]) == PAIRS
    assert set(numbers(stem)["layer"]) == {str(LAYERS - 1)}
    assert along["vision"].mean() == pytest.approx(0, abs=1e-9)
    # All pairs are drawn, but the gap is that of its calibration set: 40 of the 60.
    assert along["text"].mean() == pytest.approx(along["gap"][0], rel=0.1)
    # The random arrow is short in the picture because it is short: about 1/sqrt(d) of the gap.
    assert 0.2 / WIDTH**0.5 < along["random"][0] / along["gap"][0] < 2 / WIDTH**0.5


def test_projection_is_one_of_the_states_themselves() -> None:
    draw = np.random.default_rng(3)
    vision, text = draw.standard_normal((2, 30, 12))
    gap = draw.standard_normal(12)
    plane = figure1c.project(vision, text, gap)
    # Orthonormal axes cannot lengthen anything, and the first one gives the cosine to the gap.
    centred = vision - vision.mean(axis=0)
    assert (np.linalg.norm(plane.vision, axis=1) <= np.linalg.norm(centred, axis=1) + 1e-9).all()
    assert plane.typical_cosine == pytest.approx(0.67 / 12**0.5, rel=0.15)
    assert plane.vision[:, 0] == pytest.approx(centred @ gap / np.linalg.norm(gap))
    # The vertical axis knows nothing of the gap: states moved along it keep their height.
    moved = figure1c.project(vision, text + np.outer(draw.uniform(3, 9, 30), gap), gap)
    assert moved.text[:, 1] == pytest.approx(plane.text[:, 1])
    # Rotating the whole space turns nothing in the picture but the arbitrary sign of the axis.
    rotation = np.linalg.qr(draw.standard_normal((12, 12)))[0]
    turned = figure1c.project(vision @ rotation, text @ rotation, gap @ rotation)
    assert np.abs(turned.text) == pytest.approx(np.abs(plane.text))


def test_figure1c_refuses_files_of_two_backbones(gap: Path, tmp_path: Path) -> None:
    with create_hdf5(tmp_path / "other.h5", "states", {}) as file:
        file["vision"] = file["text"] = np.zeros((3, 8, 12), np.float32)
        file["image_id"] = np.arange(8)
    with pytest.raises(GapinitError, match=r"other.h5: holds 3 layers of width 12.*not of one"):
        figure1c.draw(tmp_path / "other.h5", gap, tmp_path / "figure1c")


def write_run(path: Path, method: str, alignment: object) -> Path:
    path.write_text(
        json.dumps({"factors": {"method": method}, "alignment_at_init": alignment}),
        encoding="utf-8",
    )
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "runs"
    folder.mkdir()
    return [
        write_run(folder / "a.json", "gap-init", [0.97, 0.985, 0.93]),
        write_run(folder / "b.json", "gap-init", [0.97, 1.0000001]),
        write_run(folder / "c.json", "random-b", [-0.15, 0.01, 0.31, -0.05]),
        write_run(folder / "d.json", "lora-gaussian", None),
    ]


def test_figure2(gap: Path, runs: list[Path], tmp_path: Path) -> None:
    stem = tmp_path / "out" / "figure2"
    figure2.draw(gap, runs, stem)
    check_files(stem)
    # The same data give the same bytes.
    again = tmp_path / "again" / "figure2"
    figure2.draw(gap, runs, again)
    for suffix in SUFFIXES:
        files = [path.with_suffix(f".{suffix}").read_bytes() for path in (stem, again)]
        assert files[0] == files[1], suffix
    edges = np.append(column(stem, "cosine_from"), column(stem, "cosine_to")[-1])
    for key, values in [
        ("gap_init", [0.97, 0.985, 0.93, 0.97, 1.0]),
        ("random_b", [-0.15, 0.01, 0.31, -0.05]),
    ]:
        expected = np.histogram(values, edges)[0] / len(values)
        np.testing.assert_array_equal(column(stem, key), expected)
    random, law = column(stem, "random_vectors"), column(stem, "exact_law")
    assert random.sum() == pytest.approx(1.0) and law.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(random, law, atol=0.006)
    # Second moment 1/d: the vectors have the width of the gap in the file.
    middle = (edges[1:] + edges[:-1]) / 2
    assert random @ middle**2 == pytest.approx(1 / WIDTH, rel=0.05)


def test_figure2_errors(gap: Path, runs: list[Path], tmp_path: Path) -> None:
    stem = tmp_path / "out" / "figure2"
    with pytest.raises(GapinitError, match="gap0.h5: has no held-out gap"):
        figure2.draw(gap.with_name("gap0.h5"), runs, stem)
    with pytest.raises(GapinitError, match="none of the 2 runs has the method 'gap-init'"):
        figure2.draw(gap, runs[2:], stem)
    for bad in (None, [], [0.5, None], [1.2], "0.9"):
        write_run(runs[0], "gap-init", bad)
        with pytest.raises(GapinitError, match="a.json: key 'alignment_at_init"):
            figure2.draw(gap, runs, stem)
    assert not stem.parent.exists()


def test_figure3(gap: Path, tmp_path: Path) -> None:
    stem = tmp_path / "out" / "figure3"
    figure3.draw(gap, stem)
    check_files(stem)
    content = read_gap(gap)
    for key, values in [
        ("share", content.singular_values),
        ("share_centred", content.singular_values_centred),
    ]:
        energy = values[[1, 2, 4]] ** 2
        expected = energy / energy.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(column(stem, key), expected.ravel(), rtol=1e-13)
    assert column(stem, "layer").tolist() == [1.0] * WIDTH + [2.0] * WIDTH + [4.0] * WIDTH
    assert column(stem, "published_leading_share").tolist() == [0.16] * 3


def test_figure4(gap: Path, tmp_path: Path) -> None:
    stem = tmp_path / "out" / "figure4"
    figure4.draw(gap, stem)
    check_files(stem)
    content = read_gap(gap)
    edges = np.append(column(stem, "cosine_from"), column(stem, "cosine_to")[-1])
    for name, cosines in [("vision", content.vision_cosine), ("text", content.text_cosine)]:
        expected = np.histogram(cosines[-1], edges)[0] / cosines.shape[1]
        np.testing.assert_array_equal(column(stem, f"{name}_share"), expected)
        assert expected.sum() == pytest.approx(1.0)  # no state falls outside the bins
        np.testing.assert_allclose(column(stem, f"{name}_mean"), cosines.mean(axis=1), rtol=1e-13)
        np.testing.assert_allclose(
            column(stem, f"{name}_p95"), np.percentile(cosines, 95, axis=1), rtol=1e-13
        )


def test_figure5(tmp_path: Path) -> None:
    stem = tmp_path / "out" / "figure5"
    figure5.draw(stem)
    check_files(stem)
    dimensions = column(stem, "dimension").astype(int).tolist()
    assert dimensions[0] == 64 and dimensions[-1] == 4096
    exact = [mean_alignment(dimension) for dimension in dimensions]
    np.testing.assert_allclose(column(stem, "exact_mean"), exact, rtol=1e-15)
    sampled = column(stem, "random_mean")
    np.testing.assert_allclose(sampled, exact, rtol=0.15)
    slope = np.polyfit(np.log(dimensions), np.log(sampled), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.03)
    np.testing.assert_allclose(column(stem, "gap_init"), (1 + 2 / 256) ** -0.5, atol=5e-3)
    assert not (sampled == exact).any()
