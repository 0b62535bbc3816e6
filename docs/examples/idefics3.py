"""Idefics3: square images of one size, a pixel shuffle, and a Llama decoder.

Every image has the same number of tokens, and positions count tokens.
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
    # with the repository's own. An answer begins with a space, and so does `turn`, unlike in the
    # template. The wording is that of LLaVA's evaluations.
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
    packs_texts = True  # a Llama decoder accepts 4-D masks and any positions

    def image_tokens(self, width: int, height: int) -> int:
        """Return the number of shuffled patches, the same for every image."""
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        return int(side**2 // config.scale_factor**2)

    def pixels(self, images: Sequence[Any]) -> dict[str, Tensor]:
        """Return the pixels and masks of whole images, each passed as a sample with one image.

        ASSUME: no extra crops. The published processor splits images, which gives many blocks of
        tokens with text between them.
        """
        reader = self.processor.image_processor
        found = reader([[image] for image in images], do_image_splitting=False, return_tensors="pt")
        return {name: found[name] for name in ("pixel_values", "pixel_attention_mask")}

    def image_features(self, pixels: Mapping[str, Tensor]) -> Images:
        """Return the projected patches, the same number for each image."""
        values = pixels["pixel_values"].to(self.device, self.model.dtype)
        mask = pixels["pixel_attention_mask"].to(self.device)
        found = self.model.get_image_features(values, mask, return_dict=True).pooler_output
        return Images.equal(torch.stack(list(found)))

    def drop_vision(self) -> None:
        """Free the vision tower and the projection."""
        self.model.model.vision_model = None
        self.model.model.connector = None
