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
    from matplotlib.axes import Axes

QUANTITIES = {
    "loss": "training loss",
    "grad_norm": "gradient norm",
    "alignment": "mean |cos(B, gap)|",
}
LINES = ("-", "--", ":", "-.")
# Gap-Init has one colour in every figure; the other methods share the rest.
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

    `runs` are the `run.json` of the runs, each beside its `steps.csv`. Runs that differ only in the
    seed make one line, the mean over seeds, with a band of one standard deviation. Each run is
    first smoothed by a centred running mean over a fiftieth of its steps. Each quantity of each
    backbone has a panel: one quantity side by side, several in one row a backbone.
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
            _draw_quantity(axes, place[1], drawn, styles)
            if len(backbones) > 1:
                axes.set_title(place[0])
        # Every panel may draw a method; the legend names it once.
        handles = {str(line.get_label()): line for axes in panels for line in axes.lines}
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=2)
        style.save(figure, output)
    style.write_numbers(output, _numbers(curves))


def labels(runs: Sequence[Run]) -> list[str]:
    """Return a distinct name for each run: the method, and the factors that differ."""
    varying = [
        name
        for name in ("rank", "layers", "epochs", "calibration", "calibration_size", "noise")
        if len({getattr(run, name) for run in runs if getattr(run, name) is not None}) > 1
    ]
    names = []
    for run in runs:
        factors = {name: getattr(run, name) for name in varying}
        parts = [f"{k.replace('_', ' ')} {v}" for k, v in factors.items() if v is not None]
        names.append(", ".join([METHODS[run.method].label, *parts]))
    return names


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
    # ASSUME: losses of small batches are noisy, so curves are smoothed; the caption says how.
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


def _draw_quantity(
    axes: Axes, quantity: str, curves: Sequence[Curve], styles: Mapping[str, tuple[str, str]]
) -> None:
    axes.set_ylabel(QUANTITIES[quantity])
    axes.set_xlabel("step")
    # Gradient norms of methods differ by orders of magnitude; the other two do not.
    if quantity == "grad_norm":
        axes.set_yscale("log")
    elif quantity == "alignment":
        axes.set_ylim(0, 1.02)
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


def _numbers(curves: Sequence[Curve]) -> dict[str, Sequence[Any]]:
    lines = [
        (curve.backbone, curve.label, curve.quantity, int(step), mean, std, curve.n_seeds)
        for curve in curves
        for step, mean, std in zip(
            curve.step,
            curve.mean,
            curve.std if curve.n_seeds > 1 else [None] * len(curve.step),
            strict=True,
        )
    ]
    names = ("backbone", "label", "quantity", "step", "mean", "std", "n_seeds")
    return dict(zip(names, zip(*lines, strict=True), strict=True))
