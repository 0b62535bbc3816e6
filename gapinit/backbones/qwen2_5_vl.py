"""Qwen2.5-VL: Qwen2-VL's decoder with another vision tower."""

from __future__ import annotations

from transformers import Qwen2_5_VLForConditionalGeneration

from gapinit.backbones.qwen2_vl import Qwen2VLBackbone


class Qwen25VLBackbone(Qwen2VLBackbone):
    """Qwen2.5-VL; it differs from Qwen2-VL in the positions of videos, not of images."""

    model_class = Qwen2_5_VLForConditionalGeneration
    vision_pattern = (
        r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate_proj|up_proj|down_proj))"
    )
