"""The trunk: outputs of the frozen layers, computed once and cached in one of three modes."""
