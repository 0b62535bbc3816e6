"""Architecture files small enough for a CPU, one for each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TEXT: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4000,
}
ROPE = {"rope_type": "default", "rope_theta": 100.0}
QWEN_READER = {
    "class": "Qwen2VLImageProcessorPil",
    "arguments": {"patch_size": 4, "merge_size": 2, "min_pixels": 64, "max_pixels": 1600},
}
QWEN_VISION = {
    "depth": 1,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}


def reader(name: str, side: int, **more: Any) -> dict[str, Any]:
    size = {"height": side, "width": side}
    return {"class": f"{name}ImageProcessorPil", "arguments": {"size": size, **more}}


TINY: dict[str, dict[str, Any]] = {
    "blip-2": {
        "config": {
            "num_query_tokens": 4,
            "text_config": {
                "model_type": "opt",
                "vocab_size": 500,
                "hidden_size": 32,
                "word_embed_proj_dim": 32,
                "ffn_dim": 64,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "max_position_embeddings": 400,
            },
            "vision_config": TOWER
            | {"num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
            | {"initializer_range": 0.02},
            "qformer_config": TOWER | {"num_hidden_layers": 1, "vocab_size": 8},
        },
        "image_processor": reader("Blip", 16),
    },
    "qwen2_vl": {
        "config": {
            "text_config": TEXT | {"rope_parameters": ROPE | {"mrope_section": [1, 2, 1]}},
            "vision_config": QWEN_VISION | {"embed_dim": 16, "mlp_ratio": 2, "hidden_size": 32},
        },
        "image_processor": QWEN_READER,
    },
    "qwen2_5_vl": {
        "config": {
            "text_config": TEXT | {"rope_parameters": ROPE | {"mrope_section": [1, 2, 1]}},
            "vision_config": QWEN_VISION
            | {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
            | {"window_size": 16, "fullatt_block_indexes": [0]},
        },
        "image_processor": QWEN_READER,
    },
    "gemma3": {
        "dtype": "bfloat16",
        "config": {
            "mm_tokens_per_image": 4,
            "text_config": TEXT | {"head_dim": 8, "sliding_window": 16},
            "vision_config": TOWER
            | {"model_type": "siglip_vision_model", "num_hidden_layers": 1}
            | {"image_size": 16, "patch_size": 4, "vision_use_head": False},
        },
        "image_processor": reader("Gemma3", 16),
    },
    "mllama": {
        "dtype": "bfloat16",
        "config": {
            "text_config": TEXT | {"cross_attention_layers": [1, 2], "rope_parameters": ROPE},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 2,
                "image_size": 24,
                "patch_size": 8,
                "max_num_tiles": 4,
                "intermediate_layers_indices": [0, 1],
                "vision_output_dim": 48,
            },
        },
        "image_processor": reader("Mllama", 24, max_image_tiles=4),
    },
    "llava": {
        "dtype": "float16",
        "config": {
            "image_seq_length": 9,
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": TOWER
            | {"model_type": "clip_vision_model", "num_hidden_layers": 3}
            | {"image_size": 12, "patch_size": 4, "projection_dim": 8},
        },
        "image_processor": {
            "class": "CLIPImageProcessorPil",
            "arguments": {
                "size": {"shortest_edge": 12},
                "crop_size": {"height": 12, "width": 12},
            },
        },
    },
}


def write_tiny(family: str, folder: Path) -> Path:
    """Write a family's small architecture and return its file."""
    content = dict(TINY[family])
    content["config"] = {"model_type": family, **content["config"]}
    path = folder / f"tiny-{family}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
