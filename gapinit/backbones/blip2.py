"""BLIP-2 with an OPT language model.

A sequence is the image's query tokens, then BOS, then the text, as in the model's processor. That
processor silently adds no image tokens if its `num_query_tokens` is missing; here the number comes
from the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from gapinit.backbones.base import Backbone
from gapinit.backbones.inputs import Images
from gapinit.backbones.last_layer import opt_layer
from gapinit.backbones.prompts import Prompts
from gapinit.errors import GapinitError

QUESTION = "Question: {question} Short answer:"


class Blip2Backbone(Backbone):
    """BLIP-2 (OPT): a frozen vision tower, a Q-Former, and a decoder with learned positions."""

    model_class = Blip2ForConditionalGeneration
    # Source: the BLIP-2 authors' prompts in the model cards; captions have no prompt.
    default_prompts = Prompts(
        caption="", question=QUESTION, chat=QUESTION, turn=QUESTION, spaced=True
    )
    in_template = False
    packs_texts = True
    last_layer = staticmethod(opt_layer)
    # OPT calls the paper's `o_proj` `out_proj`.
    target_pattern = (
        r"language_model\.model\.decoder\.layers\.({layers})\."
        r"(self_attn\.(q_proj|k_proj|v_proj|out_proj)|fc1|fc2)"
    )
    vision_pattern = (
        r"vision_model\.encoder\.layers\.\d+\.(self_attn\.(qkv|projection)|mlp\.(fc1|fc2))"
    )

    @classmethod
    def check_config(cls, config: Mapping[str, Any], origin: str) -> None:
        """Refuse language models other than OPT, for example T5."""
        language_model = (config.get("text_config") or {}).get("model_type", "opt")
        if language_model != "opt":
            raise GapinitError(
                f"{origin}: the language model of this BLIP-2 is '{language_model}', expected "
                "'opt': gapinit adapts decoder-only BLIP-2 (for example blip2-opt-2.7b)"
            )

    @classmethod
    def load_processor(cls, folder: Path) -> Any:
        """Return the real processor, which adds the image token to older tokenizers."""
        return Blip2Processor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )

    @property
    def decoder(self) -> Any:
        """Return OPT's stack of decoder layers, embeddings included."""
        return self.model.language_model.get_decoder()

    @property
    def image_token_id(self) -> int:
        """Return the placeholder of an image; 0 for older configurations, which have none."""
        return int(self.model.config.image_token_index or 0)

    @property
    def text_start(self) -> list[int]:
        """Return BOS, which stands behind the image."""
        return [self.text_config.bos_token_id]

    @property
    def text_positions(self) -> int:
        """Return how many text tokens, BOS included, fit beside the image."""
        positions: int = self.text_config.max_position_embeddings
        return positions - self.model.config.num_query_tokens

    def image_tokens(self, width: int, height: int) -> int:
        """Return the number of query tokens, the same for every image."""
        return int(self.model.config.num_query_tokens)

    def image_features(self, pixels: Mapping[str, Tensor]) -> Images:
        """Return the projected query tokens, the same number for each image."""
        values = pixels["pixel_values"].to(self.device, self.model.dtype)
        return Images.equal(self.model.get_image_features(values, return_dict=True).pooler_output)

    def drop_vision(self) -> None:
        """Free the vision tower and the Q-Former."""
        self.model.vision_model = None
        self.model.qformer = None

    def cut_below(self, first: int) -> None:
        """Cut the layers, and the learned positions that OPT adds below the first layer."""
        if self.decoder.project_in is not None:
            raise GapinitError("an OPT with projected embeddings (opt-350m) cannot be cut")
        super().cut_below(first)
        if first > 0:
            self.decoder.embed_positions = _NoPositions()

    def keep_below(self, first: int) -> None:
        """Keep the layers below `first`; OPT's final norm is called `final_layer_norm`."""
        self.decoder.layers = self.decoder_layers[:first]
        self.decoder.final_layer_norm = None
        self.decoder.project_out = None

    @property
    def generator(self) -> Any:
        """Return the language model: BLIP-2's `generate` requires pixels."""
        return self.model.language_model


class _NoPositions(nn.Module):
    """Replaces OPT's learned positions, which cached states already contain."""

    def forward(self, attention_mask: Tensor, *_: object, **__: object) -> Tensor:
        return torch.zeros((), device=attention_mask.device)
