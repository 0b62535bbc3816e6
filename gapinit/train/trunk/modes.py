"""The content and size in bytes of a trunk by mode, for the writer and the doctor. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gapinit.errors import GapinitError

Mode = Literal["layer", "vision", "off"]
TrunkMode = Literal["auto", "layer", "vision", "off"]
NUMBER_BYTES = 8
"""Of a token id, label or offset."""
BFLOAT16_BYTES, FLOAT32_BYTES = 2, 4


def trunk_mode(asked: TrunkMode, first: int, *, vision: bool) -> Mode:
    """Return a trunk's mode, given the lowest adapted layer and whether the tower is adapted.

    "layer" at layer 0 becomes "vision": the inputs of that layer are image tokens and embeddings.
    """
    if vision:
        if asked not in ("auto", "off"):
            raise GapinitError(
                f"--mode: '{asked}' caches the vision tower's output, but this strategy adapts "
                "the tower: use 'off' or 'auto' (training.trunk)"
            )
        return "off"
    if asked == "off":
        return "off"
    return "vision" if asked == "vision" or first == 0 else "layer"


def stored_bytes(dtype: str, own: int) -> int:
    """Return the bytes per stored value for training.trunk_dtype; `own`: of the model's type."""
    return {"float32": FLOAT32_BYTES, "bfloat16": BFLOAT16_BYTES}.get(dtype, own)


@dataclass(frozen=True)
class TrunkSize:
    """The counts that determine a trunk's size; all but the last three are sums over the set."""

    images: int
    texts: int
    tokens: float
    """Tokens of all texts."""
    prefix: int
    """Tokens of all images and of the template in front of them."""
    memory: int
    """Image tokens that cross-attention reads; 0 for most families."""
    width: int
    value_bytes: int
    grid_width: int

    def bytes(self, mode: Mode) -> float:
        """Return the bytes of states, token ids, labels and offsets."""
        rows = 0.0 if mode == "off" else float(self.prefix + self.memory)
        if mode == "layer":
            rows += self.tokens
        # Token ids and labels; offset and image of each text; offset and grid of each image.
        numbers = 2 * self.tokens + 2 * self.texts + 1 + (1 + self.grid_width) * self.images + 1
        if self.memory and mode != "off":
            numbers += self.images + 1
        return rows * self.width * self.value_bytes + NUMBER_BYTES * numbers
