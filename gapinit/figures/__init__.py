"""The paper's figures: one module a figure, whose `draw` writes PDF, PNG, SVG and CSV."""
