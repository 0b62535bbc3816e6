"""LLaVA-1.5: the projected patches of a CLIP tower in front of a Llama decoder.

Every image is cropped to one size, so all have the same number of tokens. Positions count tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from gapinit.backbones.base import LLAMA_MODULES, Backbone
from gapinit.backbones.inputs import Images
from gapinit.backbones.last_layer import rotary_layer
from gapinit.backbones.prompts import Prompts
from gapinit.errors import GapinitError

ANSWER = " ASSISTANT:"
TOWER = "clip_vision_model"


class LlavaBackbone(Backbone):
    """LLaVA-1.5: a CLIP tower, a two-layer projector and a Llama decoder."""

    model_class: ClassVar[Any] = LlavaForConditionalGeneration
    # Source: the prompt of the published weights (Vicuna's conversation, image first). ASSUME: the
    # papers do not print their prompts; the wording is that of LLaVA's evaluations.
    # `turn` begins without a space: Llama's tokenizer adds one in front of each piece.
    default_prompts = Prompts(
        head="USER: ",
        caption=f"\nProvide a one-sentence caption for the provided image.{ANSWER}",
        question="\n{question}\nAnswer the question using a single word or phrase." + ANSWER,
        chat="\n{question}" + ANSWER,
        turn="USER: {question}" + ANSWER,
    )
    target_pattern = r"model\.language_model\.layers\.({layers})\." + LLAMA_MODULES
    # Some versions of transformers have one more module, `vision_model`, in the tower.
    vision_pattern = (
        r"model\.vision_tower\.(vision_model\.)?encoder\.layers\.\d+\."
        r"(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"
    )
    packs_texts = True
    last_layer = staticmethod(rotary_layer)

    @classmethod
    def check_config(cls, config: Mapping[str, Any], origin: str) -> None:
        """Refuse vision towers other than CLIP."""
        tower = (config.get("vision_config") or {}).get("model_type", TOWER)
        if tower != TOWER:
            raise GapinitError(
                f"{origin}: the vision tower of this LLaVA is '{tower}', expected '{TOWER}': "
                "gapinit adapts LLaVA-1.5 (for example llava-1.5-7b-hf)"
            )

    def image_tokens(self, width: int, height: int) -> int:
        """Return the number of patches, plus one if the tower's class token is kept."""
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        return int(side**2 + (config.vision_feature_select_strategy != "default"))

    def image_features(self, pixels: Mapping[str, Tensor]) -> Images:
        """Return the projected patches, the same number for each image.

        The configuration decides on the tower's layer and whether its class token is kept.
        """
        values = pixels["pixel_values"].to(self.device, self.model.dtype)
        found = self.model.get_image_features(values, return_dict=True).pooler_output
        return Images.equal(torch.stack(list(found)))

    def drop_vision(self) -> None:
        """Free the vision tower."""
        self.model.model.vision_tower = None
