"""Figures 1a, 1c and the training curves: the numbers drawn are the numbers measured."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gapinit.artifacts.artifacts import create_hdf5, write_json
from gapinit.config.runs import Run
from gapinit.errors import GapinitError
from gapinit.figures import bars, curves, figure1c, style
from gapinit.gap.gap_file import estimate_gap_file
from gapinit.tables.records import read_table

from .report_tree import LABELS, Tree

WIDTH, PAIRS, LAYERS = 48, 80, 3


def read_numbers(stem: Path) -> list[dict[str, str]]:
    """Read the CSV beside a figure, and check that the pictures are there."""
    for suffix in ("pdf", "png", "svg"):
        assert stem.with_suffix(f".{suffix}").stat().st_size > 1000
    with open(stem.with_suffix(".csv"), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_figure1a_draws_the_tables_numbers(tree: Tree, tmp_path: Path) -> None:
    table = tree.root / "6_tables/table2.csv"
    bars.draw(table, tmp_path / "figure1a", metric="CIDEr")
    drawn = read_numbers(tmp_path / "figure1a")
    rows = [row for row in read_table(table) if row.metric == "CIDEr"]
    assert [line["label"] for line in drawn] == [LABELS[row.row] for row in rows]
    for line, row in zip(drawn, rows, strict=True):
        assert float(line["measured"]) == row.measured
        assert line["published"] == ("" if row.published is None else repr(row.published))
        assert row.interval is not None
        assert float(line["interval_low"]) == row.interval.low


def test_figure1a_names_the_missing_metric(tree: Tree, tmp_path: Path) -> None:
    table = tree.root / "6_tables/table2.csv"
    with pytest.raises(GapinitError, match="table2.csv: expected rows with the metric 'METEOR'"):
        bars.draw(table, tmp_path / "figure", metric="METEOR")


def write_states(path: Path, *, width: int = WIDTH, seed: int = 0) -> None:
    """Write states whose modalities lie apart along a known direction."""
    draw = np.random.default_rng(seed)
    shape = (LAYERS, PAIRS, width)
    shift = np.zeros(width)
    shift[0] = 10.0
    with create_hdf5(path, "states", {}) as file:
        spread = np.linspace(3, 0.1, width)
        file["vision"] = (draw.standard_normal(shape) * spread).astype("f4")
        file["text"] = (draw.standard_normal(shape) * spread + shift).astype("f4")
        file["image_id"] = np.arange(PAIRS)


@pytest.fixture
def artifacts(tmp_path: Path) -> tuple[Path, Path]:
    """Return a states and a gap file that belong together."""
    states, gap = tmp_path / "states.h5", tmp_path / "gap.h5"
    write_states(states)
    estimate_gap_file(
        [states], gap, size=60, heldout=20, neighbours=5, alpha_semantic=1.0, alpha_geometric=1.0,
        smoothing="mean",
    )  # fmt: skip
    return states, gap


def test_figure1c_separates_the_modalities_along_the_gap(
    artifacts: tuple[Path, Path], tmp_path: Path
) -> None:
    figure1c.draw(*artifacts, tmp_path / "figure1c")
    points = read_numbers(tmp_path / "figure1c")
    along = {
        kind: np.array([float(point["along_gap"]) for point in points if point["kind"] == kind])
        for kind in ("vision", "text", "gap", "random")
    }
    assert len(along["vision"]) == len(along["text"]) == PAIRS
    assert {point["layer"] for point in points} == {str(LAYERS - 1)}
    assert along["vision"].mean() == pytest.approx(0, abs=1e-9)
    # All pairs are drawn, but the gap is that of its calibration set: 60 of the 80.
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
    assert plane.vision[:, 0] == pytest.approx(centred @ gap / np.linalg.norm(gap))
    # The vertical axis knows nothing of the gap: states moved along it keep their height.
    moved = figure1c.project(vision, text + np.outer(draw.uniform(3, 9, 30), gap), gap)
    assert moved.text[:, 1] == pytest.approx(plane.text[:, 1])
    # Rotating the whole space turns nothing in the picture but the arbitrary sign of the axis.
    rotation = np.linalg.qr(draw.standard_normal((12, 12)))[0]
    turned = figure1c.project(vision @ rotation, text @ rotation, gap @ rotation)
    assert np.abs(turned.text) == pytest.approx(np.abs(plane.text))


def test_typical_cosine_follows_the_exact_law() -> None:
    from scipy.stats import beta

    draw = np.random.default_rng(4)
    plane = figure1c.project(*draw.standard_normal((2, 20, 256)), draw.standard_normal(256))
    exact = beta(0.5, (256 - 1) / 2).median() ** 0.5
    assert plane.typical_cosine == pytest.approx(exact, rel=0.15)


def test_figure1c_refuses_files_of_two_backbones(
    artifacts: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.h5"
    write_states(other, width=WIDTH // 2)
    with pytest.raises(GapinitError, match=r"other.h5: holds 3 layers of width 24.*not of one"):
        figure1c.draw(other, artifacts[1], tmp_path / "figure1c")


def write_run(
    folder: Path,
    method: str,
    seed: int,
    losses: list[float],
    backbone: str = "mini-blip2",
    **factors: Any,
) -> Path:
    """Write the step log of a run with the given losses."""
    run = Run(backbone, "scenes", method, 1, "naive", 1, seed=seed, **factors)
    path = folder / run.path
    write_json(path / "run.json", {"factors": run.factors})
    lines = ["step,loss,grad_norm,learning_rate,alignment"]
    lines += [f"{n},{loss!r},{loss / 7!r},0.001,0.5" for n, loss in enumerate(losses, start=1)]
    (path / "steps.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path / "run.json"


def test_curves_are_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    first, second, other = [4.0, 3.0, 2.0], [5.0, 5.0, 1.0], [9.0, 8.0, 7.0]
    runs = [
        write_run(tmp_path, "gap-init", 1, first, calibration="in-domain", calibration_size=64),
        write_run(tmp_path, "gap-init", 2, second, calibration="in-domain", calibration_size=64),
        write_run(tmp_path, "lora-gaussian", 1, other),
    ]
    curves.draw(runs, tmp_path / "curves")
    lines = read_numbers(tmp_path / "curves")
    loss = [line for line in lines if line["label"] == "Gap-Init" and line["quantity"] == "loss"]
    assert [float(line["mean"]) for line in loss] == pytest.approx(np.mean([first, second], axis=0))
    assert [float(line["std"]) for line in loss] == pytest.approx(
        np.std([first, second], axis=0, ddof=1)
    )
    assert {line["n_seeds"] for line in loss} == {"2"}
    gradient = [line for line in lines if line["quantity"] == "grad_norm"]
    assert len(gradient) == 2 * 3
    alone = [line for line in lines if line["label"].startswith("Standard LoRA")]
    assert {line["std"] for line in alone} == {""}


@pytest.mark.parametrize(
    ("draw", "titles"),
    [
        (partial(curves.draw, quantities=("loss",)), ["large", "small"]),
        (curves.draw, ["large", "large", "large", "small", "small", "small"]),
    ],
)
def test_every_backbone_has_panels_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Any, titles: list[str]
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(style, "save", lambda figure, output: drawn.append(figure))
    runs = [
        write_run(tmp_path, "pissa", 1, [1.0, 2.0], backbone="large"),
        write_run(tmp_path, "lora-gaussian", 1, [3.0, 4.0], backbone="large"),
        # In the other order: a method keeps its colour all the same.
        write_run(tmp_path, "lora-gaussian", 1, [5.0, 6.0, 7.0], backbone="small"),
        write_run(tmp_path, "pissa", 1, [8.0, 9.0, 10.0], backbone="small"),
    ]
    draw(runs, tmp_path / "figure")
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == titles
    first, last = figure.axes[0], figure.axes[len(titles) // 2]
    colours = [{line.get_label(): line.get_color() for line in ax.lines} for ax in (first, last)]
    assert colours[0] == colours[1] and len(set(colours[0].values())) == 2
    assert list(last.lines[0].get_ydata()) == [5, 6, 7]
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 2
    lines = list(csv.DictReader((tmp_path / "figure.csv").open(encoding="utf-8")))
    assert {line["backbone"] for line in lines} == {"large", "small"}


def test_curves_tell_apart_what_differs() -> None:
    base = Run("b", "d", "lora-gaussian", 1, "naive", 1)
    other = Run("b", "d", "lora-gaussian", 8, "naive", 1)
    one, two = curves.labels([base, other])
    assert one != two
    assert one.endswith("rank 1") and two.endswith("rank 8")


def test_running_mean_keeps_a_line_and_its_ends() -> None:
    values = np.arange(20.0)
    assert curves.smooth(values, 1) is values
    assert curves.smooth(values, 5)[2:-2] == pytest.approx(values[2:-2])
    assert curves.smooth(np.full(9, 3.0), 4) == pytest.approx(np.full(9, 3.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "steps.csv: no such file"),
        ("step,loss\n1,2\n", "expected the columns step, loss, grad_norm, learning_rate"),
        ("step,loss,grad_norm,learning_rate,alignment\n", "no steps"),
        ("step,loss,grad_norm,learning_rate,alignment\n1,x,1,1,1\n", "with a number on every line"),
    ],
)
def test_curves_name_a_damaged_log(tmp_path: Path, text: str | None, message: str) -> None:
    run = write_run(tmp_path, "lora-gaussian", 1, [1.0])
    log = run.with_name("steps.csv")
    log.unlink() if text is None else log.write_text(text, encoding="utf-8")
    with pytest.raises(GapinitError, match=message):
        curves.draw([run], tmp_path / "curves")


def test_curves_refuse_runs_of_different_length(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "pissa", 1, [1.0, 2.0]), write_run(tmp_path, "pissa", 2, [1.0])]
    with pytest.raises(GapinitError, match=r"steps.csv: 1 steps, but .* has 2"):
        curves.draw(runs, tmp_path / "curves")


# Machado, Oliveira and Fernandes (2009), severity 1: linear RGB as seen without one kind of cone.
SEEN = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    "all cones": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
}


def lab(colour: str, matrix: list[list[float]]) -> np.ndarray:
    """Return a colour in CIE L*a*b* as an eye with these cones sees it."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(matrix) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = (xyz @ linear) / np.array([0.9505, 1.0, 1.089])
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", SEEN)
def test_colours_that_stand_beside_each_other_are_told_apart_by_any_eye(eye: str) -> None:
    pairs = [(style.GAP_INIT, style.RANDOM), (style.VISION, style.TEXT)]
    pairs += [(a, b) for i, a in enumerate(style.PALETTE) for b in style.PALETTE[:i]]
    for first, second in pairs:
        difference = np.linalg.norm(lab(first, SEEN[eye]) - lab(second, SEEN[eye]))
        # Two is what one can just tell apart side by side.
        assert difference > 10, (eye, first, second)
