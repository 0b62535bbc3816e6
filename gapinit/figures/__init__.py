"""The papers' figures: name, module whose `draw` writes PDF, PNG, SVG and CSV, and its options."""

from typing import Any

FIGURES: dict[str, tuple[str, dict[str, Any]]] = {
    "figure1a": ("bars", {"metric": "CIDEr"}),
    "figure1b": ("bars", {"metric": "VQAv2_accuracy"}),
    "figure1c": ("figure1c", {}),
    "figure2": ("figure2", {}),
    "figure3": ("figure3", {}),
    "figure4": ("figure4", {}),
    "figure5": ("figure5", {}),
    "curves": ("curves", {}),
    "dynamics_loss": ("curves", {"quantities": ("loss",)}),
    "dynamics_gradnorm": ("curves", {"quantities": ("grad_norm",)}),
}
DRAWN_METRIC = {
    "figure1b": "VQAv2_accuracy",
    "dynamics_loss": "loss_oscillation",
    "dynamics_gradnorm": "loss_oscillation",
}
"""Figures that draw the first table with a metric, and that metric."""
