"""The content of a trunk by its mode, and its bytes: one formula for the writer and the doctor.

No torch: the doctor reads this before anything is installed on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gapinit.errors import GapinitError

Mode = Literal["layer", "vision", "off"]
TrunkMode = Literal["auto", "layer", "vision", "off"]
NUMBER_BYTES = 8
"""A token id, a label, an offset."""
BFLOAT16_BYTES, FLOAT32_BYTES = 2, 4


def trunk_mode(asked: TrunkMode, first: int, *, vision: bool) -> Mode:
    """Return what a trunk keeps, given the lowest adapted layer and whether the tower is adapted.

    "layer" at layer 0 is "vision": what enters that layer are the image's tokens and embeddings.
    """
    if vision:
        if asked not in ("auto", "off"):
            raise GapinitError(
                f"--mode: '{asked}' keeps what the vision tower gives, but this strategy adapts "
                "the tower: use 'off', or 'auto' (training.trunk)"
            )
        return "off"
    if asked == "off":
        return "off"
    return "vision" if asked == "vision" or first == 0 else "layer"


def stored_bytes(dtype: str, own: int) -> int:
    """Return the bytes of a stored value for training.trunk_dtype; `own`: of the model's type."""
    return {"float32": FLOAT32_BYTES, "bfloat16": BFLOAT16_BYTES}.get(dtype, own)


@dataclass(frozen=True)
class TrunkSize:
    """The counts from which a trunk's bytes follow; all but the widths are sums over the set."""

    images: int
    texts: int
    tokens: float
    """Of all texts."""
    prefix: int
    """Of all images: the template in front of them and their tokens in the stream."""
    memory: int
    """Of all images: tokens that cross-attention reads; 0 for most families."""
    width: int
    value_bytes: int
    grid_width: int

    def bytes(self, mode: Mode) -> float:
        """Return the bytes of states, and of the numbers that say what they are of."""
        rows = 0.0 if mode == "off" else float(self.prefix + self.memory)
        if mode == "layer":
            rows += self.tokens
        # Ids and labels; of a text its offset and image; of an image offset and grid.
        numbers = 2 * self.tokens + 2 * self.texts + 1 + (1 + self.grid_width) * self.images + 1
        if self.memory and mode != "off":
            numbers += self.images + 1
        return rows * self.width * self.value_bytes + NUMBER_BYTES * numbers
