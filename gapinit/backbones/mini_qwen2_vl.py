"""Make `mini-qwen2-vl`: Qwen2-VL at a size that a laptop pretrains in minutes (`mini.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from gapinit.backbones.byte_level import byte_level_tokenizer
from gapinit.backbones.loading import Processor
from gapinit.backbones.mini import COLOURS, MiniSettings, draw_weights
from gapinit.backbones.pretraining import Phase, Sight
from gapinit.backbones.qwen2_vl import Qwen2VLBackbone

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MERGE = 2
"""Squares of `MERGE` x `MERGE` patches become one token, as in the published model."""


class MiniQwen2VLSettings(MiniSettings):
    """A small Qwen2-VL: its sizes and pretraining recipe."""

    key_value_heads: int
    query: Phase = Field(alias="merger")

    def build(self, corpus: Sequence[str]) -> Qwen2VLBackbone:
        """Return an untrained Qwen2-VL with its special tokens."""
        tokenizer = byte_level_tokenizer(
            corpus,
            self.vocabulary,
            SPECIAL_TOKENS,
            prefix_space=True,
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            padding_side="left",
        )
        image_processor = Qwen2VLImageProcessorPil(
            patch_size=self.patch_size,
            merge_size=MERGE,
            temporal_patch_size=1,
            min_pixels=self.image_size**2,
            max_pixels=self.image_size**2,
            **COLOURS,
        )
        model = Qwen2VLForConditionalGeneration(self._config(tokenizer))
        draw_weights([model.model.visual])
        prompts = self.prompts.applied_to(Qwen2VLBackbone.default_prompts)
        return Qwen2VLBackbone(model, Processor(tokenizer, image_processor), prompts)

    def _config(self, tokenizer: Any) -> Qwen2VLConfig:
        token = tokenizer.get_vocab()
        pairs = self.decoder_width // self.attention_heads // 2
        return Qwen2VLConfig(
            vision_config={
                "depth": self.vision_layers,
                "embed_dim": self.vision_width,
                "hidden_size": self.decoder_width,
                "num_heads": self.attention_heads,
                "mlp_ratio": 4,
                "patch_size": self.patch_size,
                "spatial_merge_size": MERGE,
                "temporal_patch_size": 1,
            },
            text_config={
                "vocab_size": len(tokenizer),
                **self.decoder_sizes,
                # Three matrices of this width have as many weights as two of 4 times the width.
                "intermediate_size": 8 * self.decoder_width // 3,
                "num_key_value_heads": self.key_value_heads,
                "initializer_range": 0.06,
                # A quarter of a head's pairs is rotated by time, the rest by row or column.
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1000.0,
                    "mrope_section": [
                        pairs // 4,
                        3 * pairs // 8,
                        pairs - pairs // 4 - 3 * pairs // 8,
                    ],
                },
                "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "tie_word_embeddings": True,
            },
            image_token_id=token["<|image_pad|>"],
            video_token_id=token["<|video_pad|>"],
            vision_start_token_id=token["<|vision_start|>"],
            vision_end_token_id=token["<|vision_end|>"],
            tie_word_embeddings=True,
        )

    @staticmethod
    def sight_of(backbone: Any) -> Sight:
        """Return Qwen2-VL's vision tower, and its merger as `query`.

        All images of the small world have one size, so their patches can be stacked.
        """
        visual = backbone.model.model.visual
        side = backbone.processor.image_processor.size["shortest_edge"] ** 0.5
        patches = int(side) // visual.config.patch_size
        grid = torch.tensor([[1, patches, patches]])

        def see(pixels: Tensor) -> Tensor:
            grids = grid.expand(len(pixels), -1)
            seen: Tensor = visual(pixels.flatten(0, 1), grids).last_hidden_state
            return seen.reshape(len(pixels), -1, seen.shape[-1])

        def query(seen: Tensor) -> Tensor:
            tokens: Tensor = visual.merger(seen.flatten(0, 1))
            return tokens.reshape(len(seen), -1, tokens.shape[-1])

        merging = list(visual.merger.parameters())
        ids = {id(parameter) for parameter in merging}
        return Sight(
            see=see,
            tower=[parameter for parameter in visual.parameters() if id(parameter) not in ids],
            query=query,
            querying=merging,
            grid=(patches // MERGE, patches // MERGE),
        )
