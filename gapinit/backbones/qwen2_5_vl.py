"""Qwen2.5-VL: Qwen2-VL's language side with another vision tower."""

from __future__ import annotations

from transformers import Qwen2_5_VLForConditionalGeneration

from gapinit.backbones.qwen2_vl import Qwen2VLBackbone


class Qwen25VLBackbone(Qwen2VLBackbone):
    """Qwen2.5-VL. An image has no time, so its positions are Qwen2-VL's."""

    model_class = Qwen2_5_VLForConditionalGeneration
    vision_pattern = (
        r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate_proj|up_proj|down_proj))"
    )
