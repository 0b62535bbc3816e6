"""Make `mini-qwen2-vl`: Qwen2-VL at a size that a laptop pretrains in minutes (`mini.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from gapinit.backbones.base import Backbone
from gapinit.backbones.loading import Processor
from gapinit.backbones.mini import MiniSettings, make
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
"""Patches on a side that become one token, as in the published model."""
INITIAL_SCALE = 0.1
LANGUAGE_SCALE = 0.06
"""Hugging Face draws weights with 0.02, made for widths near 1,000; at a width of 100 hardly any
signal would come through."""


class MiniQwen2VLSettings(MiniSettings):
    """Sizes and pretraining recipe of one small Qwen2-VL, read from `config/backbones/*.yaml`."""

    key_value_heads: int
    merger: Phase


def pretrain(settings: MiniQwen2VLSettings, data: Path, output: Path, threads: int) -> None:
    """Make a `save_pretrained` folder (safetensors, tokenizer, image processor) from nothing.

    `data` is the pretraining folder of `gapinit data`. Same settings, data, package versions and
    thread count give the same weights.
    """
    make(settings, settings.merger, train_tokenizer, build, sight_of, data, output, threads)


def sight_of(backbone: Backbone) -> Sight:
    """Return the parts of Qwen2-VL that lead from pixels to image tokens.

    All images of the small world have one size, so their patches stack.
    """
    visual = backbone.model.model.visual
    side = backbone.processor.image_processor.size["shortest_edge"] ** 0.5
    patches = int(side) // visual.config.patch_size
    grid = torch.tensor([[1, patches, patches]])

    def see(pixels: Tensor) -> Tensor:
        seen: Tensor = visual(pixels.flatten(0, 1), grid.expand(len(pixels), -1)).last_hidden_state
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
        project=lambda tokens: tokens,
        projecting=[],
        grid=(patches // MERGE, patches // MERGE),
    )


def train_tokenizer(corpus: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with Qwen's special tokens; any text encodes, as bytes if need be."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
    )


def build(settings: MiniQwen2VLSettings, tokenizer: PreTrainedTokenizerFast) -> Backbone:
    """Return an untrained Qwen2-VL of the given sizes with its tokenizer and image processor."""
    pixels = settings.image_size**2
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=settings.patch_size,
        merge_size=MERGE,
        temporal_patch_size=1,
        min_pixels=pixels,
        max_pixels=pixels,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    token = tokenizer.get_vocab()
    pairs = settings.decoder_width // settings.attention_heads // 2
    config = Qwen2VLConfig(
        vision_config={
            "depth": settings.vision_layers,
            "embed_dim": settings.vision_width,
            "hidden_size": settings.decoder_width,
            "num_heads": settings.attention_heads,
            "mlp_ratio": 4,
            "patch_size": settings.patch_size,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 1,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": settings.decoder_width,
            # Three matrices, so that the layer is as large as one of four widths with two.
            "intermediate_size": 8 * settings.decoder_width // 3,
            "num_hidden_layers": settings.decoder_layers,
            "num_attention_heads": settings.attention_heads,
            "num_key_value_heads": settings.key_value_heads,
            "max_position_embeddings": settings.max_positions,
            "initializer_range": LANGUAGE_SCALE,
            # Of a head's pairs of numbers a quarter turns with time, the rest with row or column.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000.0,
                "mrope_section": [pairs // 4, 3 * pairs // 8, pairs - pairs // 4 - 3 * pairs // 8],
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
    model = Qwen2VLForConditionalGeneration(config)
    for parameter in model.model.visual.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=INITIAL_SCALE)
    prompts = settings.prompts.applied_to(Qwen2VLBackbone.default_prompts)
    return Qwen2VLBackbone(model, Processor(tokenizer, image_processor), prompts)
