"""Make `mini-blip2`: BLIP-2 (OPT) at a size that a laptop pretrains in minutes (`mini.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from gapinit.backbones.blip2 import Blip2Backbone
from gapinit.backbones.byte_level import byte_level_tokenizer
from gapinit.backbones.mini import COLOURS, MiniSettings, draw_weights
from gapinit.backbones.pretraining import Phase, Sight


class MiniBlip2Settings(MiniSettings):
    """A small BLIP-2: its sizes and pretraining recipe."""

    qformer_layers: int
    qformer_width: int
    query_tokens: int
    query: Phase = Field(alias="qformer")

    def build(self, corpus: Sequence[str]) -> Blip2Backbone:
        """Return an untrained BLIP-2 with OPT's special tokens."""
        # OPT's BOS is "</s>"; its tokenizer adds it in front of every text, and no EOS behind.
        tokenizer = byte_level_tokenizer(
            corpus,
            self.vocabulary,
            ["<s>", "<pad>", "</s>", "<unk>"],
            first="</s>",
            prefix_space=True,
            bos_token="</s>",
            eos_token="</s>",
            pad_token="<pad>",
            unk_token="<unk>",
        )
        image_processor = BlipImageProcessorPil(
            size={"height": self.image_size, "width": self.image_size}, **COLOURS
        )
        processor = Blip2Processor(image_processor, tokenizer, num_query_tokens=self.query_tokens)
        model = Blip2ForConditionalGeneration(self._config(processor.tokenizer))
        torch.nn.init.normal_(model.query_tokens)
        draw_weights([model.vision_model, model.qformer, model.language_projection])
        prompts = self.prompts.applied_to(Blip2Backbone.default_prompts)
        return Blip2Backbone(model, processor, prompts)

    def _config(self, tokenizer: Any) -> Blip2Config:
        return Blip2Config(
            vision_config={**self.tower_sizes, "initializer_range": 0.02},
            qformer_config={
                "hidden_size": self.qformer_width,
                "intermediate_size": 4 * self.qformer_width,
                "num_hidden_layers": self.qformer_layers,
                "num_attention_heads": self.attention_heads,
                "encoder_hidden_size": self.vision_width,
                "cross_attention_frequency": 1,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                "vocab_size": 8,
            },
            text_config={
                "model_type": "opt",
                "vocab_size": len(tokenizer),
                **self.decoder_sizes,
                "word_embed_proj_dim": self.decoder_width,
                "ffn_dim": 4 * self.decoder_width,
                "dropout": 0.0,
                "init_std": 0.06,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            num_query_tokens=self.query_tokens,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )

    @staticmethod
    def sight_of(backbone: Any) -> Sight:
        """Return BLIP-2's vision tower, Q-Former and projection."""
        model = backbone.model

        def query(patches: Tensor) -> Tensor:
            queries = model.query_tokens.expand(len(patches), -1, -1)
            tokens: Tensor = model.qformer(query_embeds=queries, encoder_hidden_states=patches)[0]
            return tokens

        return Sight(
            see=lambda pixels: model.vision_model(pixels, return_dict=True).last_hidden_state,
            tower=list(model.vision_model.parameters()),
            query=query,
            querying=[*model.qformer.parameters(), model.query_tokens],
            project=model.language_projection,
            projecting=list(model.language_projection.parameters()),
        )
