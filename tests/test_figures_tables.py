"""Figure 1a and the training curves: the numbers drawn are the numbers measured."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gapinit.artifacts.artifacts import write_json
from gapinit.config.runs import Run
from gapinit.errors import GapinitError
from gapinit.figures import bars, curves, style
from gapinit.tables.records import read_table

from .report_tree import LABELS, Tree


def lines_of(stem: Path) -> list[dict[str, str]]:
    """Return the numbers that a figure shows, a line each."""
    with open(f"{stem}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_figure1a_draws_the_tables_numbers(tree: Tree, tmp_path: Path) -> None:
    table = tree.root / "6_tables/table2.csv"
    bars.draw(table, tmp_path / "figure1a", metric="CIDEr")
    drawn = lines_of(tmp_path / "figure1a")
    rows = [row for row in read_table(table) if row.metric == "CIDEr"]
    assert [line["label"] for line in drawn] == [LABELS[row.row] for row in rows]
    for line, row in zip(drawn, rows, strict=True):
        assert float(line["measured"]) == row.measured
        assert line["published"] == ("" if row.published is None else repr(row.published))
        assert row.interval is not None
        assert float(line["interval_low"]) == row.interval.low
    with pytest.raises(GapinitError, match="table2.csv: expected rows with the metric 'METEOR'"):
        bars.draw(table, tmp_path / "another", metric="METEOR")


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
    factors = {"calibration": "in-domain", "calibration_size": 64}
    runs = [
        write_run(tmp_path, "gap-init", 1, first, **factors),
        write_run(tmp_path, "gap-init", 2, second, **factors),
        write_run(tmp_path, "lora-gaussian", 1, other),
    ]
    curves.draw(runs, tmp_path / "curves")
    lines = lines_of(tmp_path / "curves")
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
    assert {line["backbone"] for line in lines_of(tmp_path / "figure")} == {"large", "small"}


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


HEADER = "step,loss,grad_norm,learning_rate,alignment\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "steps.csv: no such file"),
        ("step,loss\n1,2\n", "expected the columns step, loss, grad_norm, learning_rate"),
        (HEADER, "no steps"),
        (f"{HEADER}1,x,1,1,1\n", "with a number on every line"),
        (f"{HEADER}1,1,1,1,1\n", r"steps.csv: 1 steps, but .* has 2"),
    ],
)
def test_curves_name_a_damaged_log(tmp_path: Path, text: str | None, message: str) -> None:
    runs = [write_run(tmp_path, "pissa", seed, [1.0, 2.0]) for seed in (1, 2)]
    log = runs[1].with_name("steps.csv")
    log.unlink() if text is None else log.write_text(text, encoding="utf-8")
    with pytest.raises(GapinitError, match=message):
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
