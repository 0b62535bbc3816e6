"""The paper's figures: each is drawn by a module's `draw`, which writes PDF, PNG, SVG and CSV."""

from __future__ import annotations

from typing import Any, NamedTuple


class Figure(NamedTuple):
    """How a figure is drawn: a module of this package and the options of its `draw`."""

    module: str
    options: dict[str, Any] = {}
    metric: str | None = None
    """The figure draws the first table that has this metric; None: any table will do."""


FIGURES = {
    "figure1a": Figure("bars", {"metric": "CIDEr"}),
    "figure1b": Figure("bars", {"metric": "VQAv2_accuracy"}, "VQAv2_accuracy"),
    "figure1c": Figure("figure1c"),
    "figure2": Figure("figure2"),
    "figure3": Figure("figure3"),
    "figure4": Figure("figure4"),
    "figure5": Figure("figure5"),
    "curves": Figure("curves"),
    "dynamics_loss": Figure("curves", {"quantities": ("loss",)}, "loss_oscillation"),
    "dynamics_gradnorm": Figure("curves", {"quantities": ("grad_norm",)}, "loss_oscillation"),
}
"""Every figure by the stem of its files; `rules/inputs.smk` lists its inputs."""
