"""Stage `gap`: gap vector, SPOT-Gap, spectrum, cone, and the layers chosen by them."""

from gapinit.gap.vector import gap_vector

__all__ = ["gap_vector"]
