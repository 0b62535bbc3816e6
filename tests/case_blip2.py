"""The BLIP-2 (OPT) case of `backbone_cases.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from gapinit.backbones.base import Backbone

QUERY_TOKENS = 4
BLIP2_MODULES = (
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    "fc1",
    "fc2",
)
BLIP2_VISION = (
    "vision_model.encoder.layers.0.self_attn.qkv",
    "vision_model.encoder.layers.0.mlp.fc2",
)


def write_blip2(folder: Path) -> None:
    """Write the same random BLIP-2 that the tests of the stages use, with room for a question."""
    from .backbone_cases import CORPUS
    from .small_backbone import make_backbone

    make_backbone(folder, CORPUS, vocabulary=340, max_positions=120)


def blip2_arguments(
    model: Any, backbone: Backbone, images: Sequence[Image.Image], input_ids: Tensor
) -> dict[str, Tensor]:
    """Return the pixels."""
    return {"pixel_values": backbone.pixels(images)["pixel_values"]}


def blip2_image_tokens(backbone: Backbone, image: Image.Image) -> int:
    """Return what the real processor adds: as many as it was told at its making."""
    assert backbone.processor.num_query_tokens == QUERY_TOKENS
    return QUERY_TOKENS
