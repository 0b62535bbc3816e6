"""Small random models of every family in the real classes, and what plain transformers says.

A case says how to build one and what its own `forward` and `generate` take. The equalities are the
same for all (`test_backbones_equal.py`). Weights are drawn wide, norms and biases included, so that
a position counted twice, a mask left out or a state taken at the wrong place changes numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText

from gapinit.backbones import load_backbone
from gapinit.backbones.base import Backbone
from gapinit.backbones.byte_level import byte_level_tokenizer

from .case_blip2 import (
    BLIP2_MODULES,
    BLIP2_VISION,
    blip2_arguments,
    blip2_image_tokens,
    write_blip2,
)
from .case_gemma3 import gemma3_arguments, gemma3_image_tokens, write_gemma3
from .case_llava import llava_arguments, llava_image_tokens, write_llava
from .case_mllama import mllama_arguments, mllama_image_tokens, write_mllama

COMMON_TOKEN = 41
CAPTIONS = (
    "a red square above a small blue circle",
    "two green triangles",
    "a large yellow star to the left of a grey square on a dark background",
    "a blue square and a red star",
    "one circle",
)
CORPUS = [*CAPTIONS, "Question: what color is it? Short answer: red", "user assistant system"] * 4


@dataclass(frozen=True)
class Case:
    """One family: a small model, and how plain transformers is asked."""

    name: str
    write: Callable[[Path], None]
    """Writes a `save_pretrained` folder: model, tokenizer, image processor."""
    layers: str
    """Full name of the list of decoder layers."""
    norm: str
    """Full name of the final norm."""
    modules: tuple[str, ...]
    """The adapted matrices of each layer, by their names in it."""
    vision_modules: tuple[str, ...]
    """Full names of some of the vision tower's matrices, all of which `vision=True` adds."""
    arguments: Callable[[Any, Backbone, Sequence[Image.Image], Tensor], dict[str, Tensor]]
    """(stock model, backbone, images, input_ids) to what `forward` takes beside ids and mask."""
    image_tokens: Callable[[Backbone, Image.Image], int]
    """How many placeholders the real processor puts into `input_ids` for an image."""
    outside: frozenset[int] = frozenset()
    """Layers in which some of `modules` have another name or are missing."""


@dataclass(frozen=True)
class World:
    """A case's folder, and the plain model's inputs for all pictures and captions."""

    case: Case
    folder: Path

    @cached_property
    def loaded(self) -> Backbone:
        """The backbone that no test changes."""
        return load_backbone(self.folder)

    @cached_property
    def _stock(self) -> Any:
        model = AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32)
        return model.eval().requires_grad_(False)

    def backbone(self) -> Any:
        """Return a backbone that a test may change."""
        return deepcopy(self.loaded)

    def stock(self) -> Any:
        """Return the model as any user of transformers would load it."""
        return deepcopy(self._stock)

    def rows(self, texts: list[list[int]]) -> list[list[int]]:
        """Return whole sequences of token ids, with as many placeholders as the processor puts."""
        backbone = self.loaded
        return [
            [
                *backbone.head,
                *[backbone.image_token_id] * self.case.image_tokens(backbone, image),
                *text,
            ]
            for image, text in zip(pictures(), texts, strict=False)
        ]

    def inputs(self, model: Any, rows: list[list[int]], side: str = "right") -> dict[str, Tensor]:
        """Return what the plain model's `forward` and `generate` take."""
        width = max(len(row) for row in rows)
        pad = self.loaded.pad_token_id
        padded, mask = [], []
        for row in rows:
            fill, none, own = [pad] * (width - len(row)), [0] * (width - len(row)), [1] * len(row)
            padded.append(row + fill if side == "right" else fill + row)
            mask.append(own + none if side == "right" else none + own)
        ids = torch.tensor(padded)
        images = pictures()[: len(rows)]
        return {
            "input_ids": ids,
            "attention_mask": torch.tensor(mask),
            **self.case.arguments(model, self.loaded, images, ids),
        }


def pictures() -> list[Image.Image]:
    """Return images of several sizes."""
    random = np.random.default_rng(1)
    sizes = [(20, 24), (40, 24), (24, 24), (30, 60), (24, 40)]
    return [Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


def byte_level(special: Sequence[str], vocabulary: int = 420, **names: Any) -> Any:
    """Return a byte-level BPE tokenizer with special tokens, trained on the corpus."""
    return byte_level_tokenizer(CORPUS, vocabulary, special, **names)


@torch.no_grad()
def draw_weights(model: Any, eos_token_id: int, seed: int = 3) -> None:
    """Draw wide random weights in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            weight.copy_(1.0 + 0.3 * noise)
        elif weight.ndim < 2:
            weight.copy_(0.3 * noise)
        elif "embed" in name:
            weight.copy_(0.5 * noise)
        else:
            weight.copy_(2.0 * noise / weight[0].numel() ** 0.5)
    # The end of an answer looks like a token that is generated now and then: answers then differ
    # in length.
    embedding = model.get_input_embeddings().weight
    embedding[eos_token_id] = 1.02 * embedding[COMMON_TOKEN]
    head = model.get_output_embeddings().weight
    head[eos_token_id] = 1.02 * head[COMMON_TOKEN]


# Qwen2-VL and Qwen2.5-VL ------------------------------------------------------------------------

QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 400,
    # A head of 8 numbers turns in 4 pairs: one for time, two for rows, one for columns.
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [1, 2, 1]},
}


def qwen_image_processor() -> Any:
    """Return the PIL image processor of both families, for small images."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=8 * 8, max_pixels=40 * 40
    )


def qwen_ids(tokenizer: Any) -> dict[str, int]:
    """Return the special ids that a Qwen configuration names."""
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def write_qwen2_vl(folder: Path) -> None:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    tokenizer = byte_level(QWEN_SPECIAL, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    vision = {"depth": 2, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    vision |= {"hidden_size": 32, "temporal_patch_size": 2, "spatial_merge_size": 2}
    text = QWEN_TEXT | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **qwen_ids(tokenizer))
    _save(folder, Qwen2VLForConditionalGeneration(config), tokenizer, qwen_image_processor())


def write_qwen2_5_vl(folder: Path) -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = byte_level(QWEN_SPECIAL, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24}
    vision |= {"out_hidden_size": 32, "patch_size": 4, "spatial_merge_size": 2, "window_size": 16}
    vision |= {"temporal_patch_size": 2, "fullatt_block_indexes": [1]}
    text = QWEN_TEXT | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **qwen_ids(tokenizer))
    _save(folder, Qwen2_5_VLForConditionalGeneration(config), tokenizer, qwen_image_processor())


def qwen_arguments(
    model: Any, backbone: Backbone, images: Sequence[Image.Image], input_ids: Tensor
) -> dict[str, Tensor]:
    found = dict(backbone.processor.image_processor(list(images), return_tensors="pt"))
    return found | {"mm_token_type_ids": (input_ids == model.config.image_token_id).int()}


def qwen_image_tokens(backbone: Backbone, image: Image.Image) -> int:
    grid = backbone.processor.image_processor([image], return_tensors="pt")["image_grid_thw"]
    return int(grid.prod()) // 4


def _save(folder: Path, model: Any, tokenizer: Any, image_processor: Any) -> None:
    draw_weights(model, tokenizer.eos_token_id)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)


ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
QWEN = {
    "layers": "model.language_model.layers",
    "norm": "model.language_model.norm",
    "modules": (*ATTENTION, *GATED),
    "arguments": qwen_arguments,
    "image_tokens": qwen_image_tokens,
}
CASES = [
    Case(
        name="blip2",
        write=write_blip2,
        layers="language_model.model.decoder.layers",
        norm="language_model.model.decoder.final_layer_norm",
        modules=BLIP2_MODULES,
        vision_modules=BLIP2_VISION,
        arguments=blip2_arguments,
        image_tokens=blip2_image_tokens,
    ),
    Case(
        name="qwen2_vl",
        write=write_qwen2_vl,
        vision_modules=("model.visual.blocks.0.attn.qkv", "model.visual.blocks.1.mlp.fc2"),
        **QWEN,
    ),
    Case(
        name="qwen2_5_vl",
        write=write_qwen2_5_vl,
        vision_modules=("model.visual.blocks.0.attn.proj", "model.visual.blocks.1.mlp.up_proj"),
        **QWEN,
    ),
    Case(
        name="gemma3",
        write=write_gemma3,
        layers="model.language_model.layers",
        norm="model.language_model.norm",
        modules=(*ATTENTION, *GATED),
        vision_modules=(
            "model.vision_tower.encoder.layers.0.self_attn.out_proj",
            "model.vision_tower.encoder.layers.1.mlp.fc2",
        ),
        arguments=gemma3_arguments,
        image_tokens=gemma3_image_tokens,
    ),
    Case(
        name="llava",
        write=write_llava,
        layers="model.language_model.layers",
        norm="model.language_model.norm",
        modules=(*ATTENTION, *GATED),
        vision_modules=(
            "model.vision_tower.encoder.layers.0.self_attn.out_proj",
            "model.vision_tower.encoder.layers.1.mlp.fc2",
        ),
        arguments=llava_arguments,
        image_tokens=llava_image_tokens,
    ),
    Case(
        name="mllama",
        write=write_mllama,
        layers="model.language_model.layers",
        norm="model.language_model.norm",
        modules=(*ATTENTION, *(name.replace("self", "cross") for name in ATTENTION), *GATED),
        vision_modules=(
            "model.vision_model.transformer.layers.0.self_attn.o_proj",
            "model.vision_model.global_transformer.layers.0.mlp.fc2",
        ),
        arguments=mllama_arguments,
        image_tokens=mllama_image_tokens,
        outside=frozenset(range(5)),  # a layer attends to the text or to the image
    ),
]


def case_named(name: str) -> Case:
    """Return the case of a family."""
    return next(case for case in CASES if case.name == name)
