"""Make `mini-gemma3`: Gemma 3 at a size that a laptop pretrains in minutes (`mini.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from gapinit.backbones.byte_level import byte_level_tokenizer
from gapinit.backbones.gemma3 import Gemma3Backbone
from gapinit.backbones.mini import COLOURS, INITIAL_SCALE, MiniSettings, draw_weights
from gapinit.backbones.pretraining import Phase, Sight

SPECIAL_TOKENS = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
]
TEMPLATE_WORDS = ["user\n", "caption", "\n", "model\n"]
"""The words of the template."""


class MiniGemma3Settings(MiniSettings):
    """A small Gemma 3: its sizes and pretraining recipe."""

    key_value_heads: int
    image_tokens: int
    """Squares of patches are averaged to this number of tokens."""
    sliding_window: int
    """In tokens, the attending one included."""
    full_attention_every: int
    """One layer in this number has full attention instead of a sliding window."""
    query: Phase = Field(alias="projector")

    def build(self, corpus: Sequence[str]) -> Gemma3Backbone:
        """Return an untrained Gemma 3 with its special tokens."""
        tokenizer = byte_level_tokenizer(
            # Repeated until they become tokens: each token costs time at every step.
            [*corpus, *len(corpus) * TEMPLATE_WORDS],
            self.vocabulary,
            SPECIAL_TOKENS,
            first="<bos>",
            prefix_space=True,
            bos_token="<bos>",
            eos_token="<eos>",
            pad_token="<pad>",
            # The names that the real processor expects.
            extra_special_tokens={
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
                "image_token": "<image_soft_token>",
            },
        )
        image_processor = Gemma3ImageProcessorPil(
            size={"height": self.image_size, "width": self.image_size}, **COLOURS
        )
        processor = Gemma3Processor(image_processor, tokenizer, image_seq_length=self.image_tokens)
        model = Gemma3ForConditionalGeneration(self._config(tokenizer.get_vocab()))
        # Hugging Face initialises the projector to zero.
        draw_weights([model.model.vision_tower, model.model.multi_modal_projector])
        prompts = self.prompts.applied_to(Gemma3Backbone.default_prompts)
        return Gemma3Backbone(model, processor, prompts)

    def _config(self, ids: Mapping[str, int]) -> Gemma3Config:
        every = self.full_attention_every
        head_width = self.decoder_width // self.attention_heads
        return Gemma3Config(
            vision_config={
                "model_type": "siglip_vision_model",
                **self.tower_sizes,
                "vision_use_head": False,
            },
            text_config={
                "vocab_size": len(ids),
                **self.decoder_sizes,
                # Three matrices of this width have as many weights as two of 4 times the width.
                "intermediate_size": 8 * self.decoder_width // 3,
                "num_key_value_heads": self.key_value_heads,
                "head_dim": head_width,
                "query_pre_attn_scalar": head_width,
                "sliding_window": self.sliding_window,
                "layer_types": [
                    "full_attention" if layer % every == 0 else "sliding_attention"
                    for layer in range(1, self.decoder_layers + 1)
                ],
                "initializer_range": INITIAL_SCALE,
                "bos_token_id": ids["<bos>"],
                # Either of them ends an answer, as in the published chat model.
                "eos_token_id": [ids["<eos>"], ids["<end_of_turn>"]],
                "pad_token_id": ids["<pad>"],
            },
            mm_tokens_per_image=self.image_tokens,
            boi_token_index=ids["<start_of_image>"],
            eoi_token_index=ids["<end_of_image>"],
            image_token_index=ids["<image_soft_token>"],
        )

    @staticmethod
    def sight_of(backbone: Any) -> Sight:
        """Return Gemma 3's vision tower and its projector, as `query`."""
        model = backbone.model.model
        return Sight(
            see=lambda pixels: model.vision_tower(pixels, return_dict=True).last_hidden_state,
            tower=list(model.vision_tower.parameters()),
            query=model.multi_modal_projector,
            querying=list(model.multi_modal_projector.parameters()),
        )
