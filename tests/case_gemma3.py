"""A small random Gemma 3 in the real classes, and what plain transformers takes for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tokenizers import processors
from torch import Tensor

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone

IMAGE_TOKENS = 4
SPECIAL = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)


def gemma3_tokenizer() -> Any:
    """Return a tokenizer that puts BOS in front of every text and names Gemma's image tokens."""
    from .backbone_cases import byte_level

    tokenizer = byte_level(
        SPECIAL,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


def write_gemma3(folder: Path) -> None:
    """Write a Gemma 3 whose heads are wider than its states, with a window shorter than a text."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    from .backbone_cases import draw_weights

    tokenizer = gemma3_tokenizer()
    config = Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "query_pre_attn_scalar": 10,
            "max_position_embeddings": 400,
            "sliding_window": 5,
            "layer_types": [
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
            ],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "vision_use_head": False,
        },
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )
    model = Gemma3ForConditionalGeneration(config)
    draw_weights(model, tokenizer.convert_tokens_to_ids("<end_of_turn>"))
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Gemma3ImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)


def gemma3_arguments(
    model: Any, backbone: Backbone, images: Sequence[Image.Image], input_ids: Tensor
) -> dict[str, Tensor]:
    """Return what `forward` takes beside ids and mask; without the types all is causal."""
    found = backbone.processor.image_processor(list(images), return_tensors="pt")
    types = (input_ids == model.config.image_token_id).long()
    return {"pixel_values": found["pixel_values"], "token_type_ids": types}


def gemma3_image_tokens(backbone: Backbone, image: Image.Image) -> int:
    """Return how many placeholders the processor puts: `image_seq_length`, the same for all."""
    return IMAGE_TOKENS
