"""A small random Llama 3.2 Vision in the real classes, and what plain transformers takes for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from tokenizers import processors
from torch import Tensor

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone

LAYERS = 5
CROSS_LAYERS = (1, 3)
TILE, TILES = 24, 4
SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
)


def mllama_tokenizer() -> Any:
    """Return a tokenizer that puts BOS in front of every text and knows the image token last."""
    from .backbone_cases import byte_level

    tokenizer = byte_level(
        SPECIAL,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
    )
    # The image token has an embedding, but no row in the output matrix.
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        special_tokens=[("<|begin_of_text|>", tokenizer.bos_token_id)],
    )
    return tokenizer


def mllama_image_processor() -> Any:
    """Return the PIL image processor, for small tiles."""
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    return MllamaImageProcessorPil(size={"height": TILE, "width": TILE}, max_image_tiles=TILES)


def write_mllama(folder: Path) -> None:
    """Write a model of two cross-attention layers with open gates."""
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    from .backbone_cases import draw_weights

    tokenizer = mllama_tokenizer()
    config = MllamaConfig(
        text_config={
            "vocab_size": len(tokenizer) - 1,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "cross_attention_layers": list(CROSS_LAYERS),
            "max_position_embeddings": 400,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": TILE,
            "patch_size": 8,
            "max_num_tiles": TILES,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 3 * 16,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    model = MllamaForConditionalGeneration(config)
    draw_weights(model, tokenizer.eos_token_id)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_gate" in name:  # closed in a new model: what an image says would change nothing
                weight.fill_(0.9)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    mllama_image_processor().save_pretrained(folder)


def mllama_arguments(
    model: Any, backbone: Backbone, images: Sequence[Image.Image], input_ids: Tensor
) -> dict[str, Tensor]:
    """Return what `forward` takes beside ids and mask, as the real processor makes it."""
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    found = dict(
        backbone.processor.image_processor([[image] for image in images], return_tensors="pt")
    )
    reads = convert_sparse_cross_attention_mask_to_dense(
        [
            get_cross_attention_token_mask(ids, model.config.image_token_index)
            for ids in input_ids.tolist()
        ],
        num_tiles=found.pop("num_tiles"),
        max_num_tiles=TILES,
        length=input_ids.shape[1],
    )
    return found | {"cross_attention_mask": torch.from_numpy(reads)}


def mllama_image_tokens(backbone: Backbone, image: Image.Image) -> int:
    """Return how many tokens of the text an image has: one, whatever its tiles."""
    return 1
