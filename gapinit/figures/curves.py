"""Training curves: loss, gradient norm and alignment with the gap, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gapinit.config.methods import METHODS
from gapinit.config.runs import Run
from gapinit.errors import GapinitError
from gapinit.figures import style
from gapinit.tables.measures import read_record
from gapinit.train.step_log import read_steps

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

QUANTITIES = {
    "loss": "training loss",
    "grad_norm": "gradient norm",
    "alignment": "mean |cos(B, gap)|",
}
LINES = ("-", "--", ":", "-.")
# Gap-Init keeps its colour in every figure; the others share what is left.
COLOURS = tuple(colour for colour in style.PALETTE if colour != style.GAP_INIT)


@dataclass(frozen=True)
class Curve:
    """One quantity of one method over the steps: mean and standard deviation over seeds."""

    label: str
    backbone: str
    method: str
    quantity: str
    step: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    n_seeds: int


def draw(
    runs: Sequence[Path], output: Path, *, quantities: Sequence[str] = tuple(QUANTITIES)
) -> None:
    """Draw training loss, gradient norm and |cos(B, gap)| over the steps, a line a method.

    `runs` are the `run.json` of the runs, each beside its `steps.csv`; runs that differ in nothing
    but the seed make one line, the mean over seeds, with a band of one standard deviation. Every
    run is first smoothed by a centred running mean over a fiftieth of its steps. Each of
    `quantities` has a panel; runs of several backbones have panels of their own, side by side or,
    of several quantities, a row a backbone.
    Writes `<output>.pdf`, `.png`, `.svg` and `.csv`. `GapinitError` names a missing or damaged
    log, and runs of one method with different numbers of steps.

    Source: Zhao et al., "When Is Rank-1 Enough?", section 4.3 (what the zeroed A does to the
    gradient); Baek et al., "Understanding LoRA Finetuning Dynamics within Vision Language Models",
    figures 3 to 6 (loss and gradient norm).
    """
    if not runs:
        raise GapinitError("training curves: expected at least one run, found none")
    groups: dict[Run, list[Path]] = {}
    for path in runs:
        groups.setdefault(replace(_run(Path(path)), seed=None), []).append(Path(path).parent)
    curves = [
        curve
        for label, (run, folders) in zip(labels(list(groups)), groups.items(), strict=True)
        for curve in _curves(label, run, folders)
        if curve.quantity in quantities
    ]
    backbones = list(dict.fromkeys(run.backbone for run in groups))
    columns = len(quantities) if len(quantities) > 1 else len(backbones)
    places = [(backbone, quantity) for backbone in backbones for quantity in quantities]
    styles = _styles(curves)
    with style.paper_style():
        figure, panels = style.panels(
            columns, rows=len(places) // columns, width=style.TEXT_WIDTH, height=2.6
        )
        for axes, place in zip(panels, places, strict=True):
            drawn = [curve for curve in curves if (curve.backbone, curve.quantity) == place]
            _draw_quantity(axes, drawn, styles)
            _name_axes(axes, place[1])
            if len(backbones) > 1:
                axes.set_title(place[0])
        handles, names = zip(*_legend(panels), strict=True)
        figure.legend(handles, names, loc="outside lower center", ncols=2)
        style.save(figure, output)
    style.write_numbers(output, _numbers(curves))


def labels(runs: Sequence[Run]) -> list[str]:
    """Return names that tell the runs apart: the method, and whatever factors differ."""
    varying = [
        name
        for name in ("rank", "layers", "epochs", "calibration", "calibration_size", "noise")
        if len({getattr(run, name) for run in runs if getattr(run, name) is not None}) > 1
    ]
    return [
        ", ".join(
            [
                METHODS[run.method].label,
                *(
                    f"{name.replace('_', ' ')} {getattr(run, name)}"
                    for name in varying
                    if getattr(run, name) is not None
                ),
            ]
        )
        for run in runs
    ]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Return the centred running mean over `window` entries; fewer at both ends."""
    if window <= 1:
        return values
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def _run(path: Path) -> Run:
    try:
        run = Run(**read_record(path).factors)
    except TypeError as error:
        raise GapinitError(f"{path}: expected the run's 'factors' ({error})") from None
    if run.method not in METHODS:
        raise GapinitError(f"{path}: unknown method '{run.method}'")
    return run


def _curves(label: str, run: Run, folders: Sequence[Path]) -> list[Curve]:
    logs = [read_steps(folder / "steps.csv") for folder in folders]
    for folder, log in zip(folders, logs, strict=True):
        if len(log["step"]) != len(logs[0]["step"]):
            raise GapinitError(
                f"{folder / 'steps.csv'}: {len(log['step'])} steps, but {folders[0]} has "
                f"{len(logs[0]['step'])}: runs of one method cannot be averaged. Train them again."
            )
    # ASSUME: step losses of small batches are noise to the eye; the span is part of the caption.
    span = max(1, len(logs[0]["step"]) // 50)
    curves = []
    for quantity in QUANTITIES:
        values = np.stack([smooth(log[quantity], span) for log in logs])
        std = values.std(axis=0, ddof=1) if len(logs) > 1 else np.zeros(values.shape[1])
        step, mean = logs[0]["step"], values.mean(axis=0)
        curves.append(Curve(label, run.backbone, run.method, quantity, step, mean, std, len(logs)))
    return curves


def _styles(curves: Sequence[Curve]) -> dict[str, tuple[str, str]]:
    """Return colour and line of each label, the same in every panel."""
    styles: dict[str, tuple[str, str]] = {}
    drawn = {True: 0, False: 0}
    for curve in curves:
        if curve.label in styles:
            continue
        own = curve.method == "gap-init"
        place = drawn[own]
        drawn[own] += 1
        colour = style.GAP_INIT if own else COLOURS[place % len(COLOURS)]
        line = LINES[(place if own else place // len(COLOURS)) % len(LINES)]
        styles[curve.label] = colour, line
    return styles


def _name_axes(axes: Axes, quantity: str) -> None:
    axes.set_ylabel(QUANTITIES[quantity])
    axes.set_xlabel("step")
    # Gradient norms of methods differ by orders of magnitude; the other two do not.
    if quantity == "grad_norm":
        axes.set_yscale("log")
    elif quantity == "alignment":
        axes.set_ylim(0, 1.02)


def _legend(panels: Sequence[Axes]) -> list[tuple[Artist, str]]:
    """Return every line of the panels once, with its name."""
    found: dict[str, Artist] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    return [(handle, name) for name, handle in found.items()]


def _draw_quantity(
    axes: Axes, curves: Sequence[Curve], styles: Mapping[str, tuple[str, str]]
) -> None:
    for curve in curves:
        colour, line = styles[curve.label]
        axes.plot(
            curve.step, curve.mean, color=colour, linestyle=line, linewidth=1.0,
            label=f"{curve.label} (n = {curve.n_seeds})",
        )  # fmt: skip
        low, high = curve.mean - curve.std, curve.mean + curve.std
        if curve.n_seeds > 1:
            # On the logarithmic axis a band may not reach zero.
            floor = 0.05 * curve.mean if curve.quantity == "grad_norm" else low
            axes.fill_between(
                curve.step, np.maximum(low, floor), high, color=colour, alpha=0.18, linewidth=0
            )


def _numbers(curves: Sequence[Curve]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        name: [] for name in ("backbone", "label", "quantity", "step", "mean", "std", "n_seeds")
    }
    for curve in curves:
        count = len(curve.step)
        columns["backbone"] += [curve.backbone] * count
        columns["label"] += [curve.label] * count
        columns["quantity"] += [curve.quantity] * count
        columns["step"] += [int(step) for step in curve.step]
        columns["mean"] += list(curve.mean)
        columns["std"] += list(curve.std) if curve.n_seeds > 1 else [None] * count
        columns["n_seeds"] += [curve.n_seeds] * count
    return columns
