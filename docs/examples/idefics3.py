"""Idefics3: square images of one size, a pixel shuffle, and a Llama decoder.

Every image has as many tokens, one after another, and positions count tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Idefics3ForConditionalGeneration

from gapinit.backbones.base import Backbone
from gapinit.backbones.inputs import Images
from gapinit.backbones.prompts import Prompts

ANSWER = "<end_of_utterance>\nAssistant:"
BEHIND = "<fake_token_around_image>"


class Idefics3Backbone(Backbone):
    """Idefics3: SigLIP, a projection of shuffled patches, and a Llama decoder."""

    model_class: ClassVar[Any] = Idefics3ForConditionalGeneration
    # ASSUME: the template of the published weights as other projects quote it; it was not compared
    # with the repository's own. A space stands in front of an answer, and so in front of `turn`,
    # where the template has none. The words are those of LLaVA's evaluations.
    default_prompts = Prompts(
        head="User:<fake_token_around_image><global-img>",
        caption=f"{BEHIND}Provide a one-sentence caption for the provided image.{ANSWER}",
        question=(
            BEHIND + "{question}\nAnswer the question using a single word or phrase." + ANSWER
        ),
        chat=BEHIND + "{question}" + ANSWER,
        turn="\nUser: {question}" + ANSWER,
        end="<end_of_utterance>",
        spaced=True,
    )
    target_pattern = (
        r"model\.text_model\.layers\.({layers})\."
        r"(self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj))"
    )
    vision_pattern = (
        r"model\.vision_model\.encoder\.layers\.\d+\."
        r"(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"
    )
    packs_texts = True  # a Llama decoder takes masks and positions as they are given

    def image_tokens(self, width: int, height: int) -> int:
        """Return the number of shuffled patches, the same for every image."""
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        return int(side**2 // config.scale_factor**2)

    def pixels(self, images: Sequence[Any]) -> dict[str, Tensor]:
        """Return the whole images' pixels and their masks: of each, a sample that has one image.

        ASSUME: no crops beside ("image splitting", which the published weights' processor does):
        those would make many blocks of tokens with text between them.
        """
        reader = self.processor.image_processor
        found = reader([[image] for image in images], do_image_splitting=False, return_tensors="pt")
        return {name: found[name] for name in ("pixel_values", "pixel_attention_mask")}

    def image_features(self, pixels: Mapping[str, Tensor]) -> Images:
        """Return the projected patches, as many for each image."""
        values = pixels["pixel_values"].to(self.device, self.model.dtype)
        mask = pixels["pixel_attention_mask"].to(self.device)
        found = self.model.get_image_features(values, mask, return_dict=True).pooler_output
        return Images.equal(torch.stack(list(found)))

    def drop_vision(self) -> None:
        """Free the vision tower and the projection."""
        self.model.model.vision_model = None
        self.model.model.connector = None
