"""The paper's figures: one module a figure, whose `draw` writes PDF, PNG, SVG and CSV."""

DRAWN_METRIC = {
    "figure1b": "VQAv2_accuracy",
    "dynamics_loss": "loss_oscillation",
    "dynamics_gradnorm": "loss_oscillation",
}
"""Figures that draw the first table with a metric, and that metric."""
