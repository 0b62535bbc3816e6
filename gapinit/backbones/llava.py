"""LLaVA-1.5: the patches of a CLIP tower, projected one by one, in front of a Llama decoder.

Every image is cropped to one size, so every image has as many tokens, and positions count tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from gapinit.artifacts.artifacts import read_json
from gapinit.backbones.base import Backbone
from gapinit.backbones.inputs import Images
from gapinit.backbones.last_layer import Rows, rotary_layer
from gapinit.backbones.prompts import Prompts
from gapinit.errors import GapinitError

ANSWER = " ASSISTANT:"
TOWER = "clip_vision_model"


class LlavaBackbone(Backbone):
    """LLaVA-1.5: a CLIP tower, a two-layer projector and a Llama decoder."""

    model_class: ClassVar[Any] = LlavaForConditionalGeneration
    # Source: the prompt of the published weights (Vicuna's conversation, image first). ASSUME: the
    # papers do not print their prompts; these words are those of LLaVA's evaluations.
    # No space in front of `turn`: Llama's tokenizer marks the beginning of a piece with one.
    default_prompts = Prompts(
        head="USER: ",
        caption=f"\nProvide a one-sentence caption for the provided image.{ANSWER}",
        question="\n{question}\nAnswer the question using a single word or phrase." + ANSWER,
        chat="\n{question}" + ANSWER,
        turn="USER: {question}" + ANSWER,
    )
    target_pattern = (
        r"model\.language_model\.layers\.({layers})\."
        r"(self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj))"
    )
    # Older transformers keep the tower's layers under one more name, `vision_model`.
    vision_pattern = (
        r"model\.vision_tower\.(vision_model\.)?encoder\.layers\.\d+\."
        r"(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"
    )
    packs_texts = True

    def __init__(self, model: Any, processor: Any, prompts: Prompts | None = None) -> None:
        _require_clip("this model", model.config.vision_config.model_type)
        super().__init__(model, processor, prompts)

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Refuse another vision tower before any weight is read."""
        vision = read_json(folder / "config.json").get("vision_config") or {}
        _require_clip(str(folder), vision.get("model_type", TOWER))
        super().check_folder(folder)

    def narrow_last_layer(self, rows: Rows, eager: bool) -> AbstractContextManager[None]:
        """Return a block in which the last layer gives keys and values of all, and `rows`."""
        return rotary_layer(self.decoder_layers[-1], rows, eager)

    @property
    def decoder(self) -> Any:
        """Return the language model's stack of decoder layers, embeddings included."""
        return self.model.model.language_model

    @property
    def output_head(self) -> nn.Module:
        """Return the matrix from final hidden states to the vocabulary."""
        return self.model.lm_head

    @property
    def image_token_id(self) -> int:
        """Return the token that holds an image's place."""
        return int(self.model.config.image_token_id)

    def image_tokens(self, width: int, height: int) -> int:
        """Return the number of patches, and one where the tower's class token is kept."""
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        return int(side**2 + (config.vision_feature_select_strategy != "default"))

    def image_features(self, pixels: Mapping[str, Tensor]) -> Images:
        """Return the projected patches, as many for each image.

        Which layer of the tower they come from, and whether its class token is among them, is the
        configuration's.
        """
        values = pixels["pixel_values"].to(self.device, self.model.dtype)
        found = self.model.get_image_features(values, return_dict=True).pooler_output
        return Images.equal(torch.stack(list(found)))

    def drop_vision(self) -> None:
        """Free the vision tower."""
        self.model.model.vision_tower = None


def _require_clip(origin: str, tower: str) -> None:
    if tower != TOWER:
        raise GapinitError(
            f"{origin}: the vision tower of this LLaVA is '{tower}', expected '{TOWER}': gapinit "
            "adapts LLaVA-1.5 (for example llava-1.5-7b-hf)"
        )
