"""Make `mini-gemma3`: Gemma 3 at a size that a laptop pretrains in minutes (`mini.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from gapinit.backbones.base import Backbone
from gapinit.backbones.gemma3 import Gemma3Backbone
from gapinit.backbones.mini import MiniSettings, make
from gapinit.backbones.pretraining import Phase, Sight

INITIAL_SCALE = 0.1
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
"""What stands between the special tokens of a template."""


class MiniGemma3Settings(MiniSettings):
    """Sizes and pretraining recipe of one small Gemma 3, read from `config/backbones/*.yaml`."""

    key_value_heads: int
    """Of the decoder's `attention_heads`, several share one key and value."""
    image_tokens: int
    """The patches of a square each are averaged to as many tokens."""
    sliding_window: int
    """How many tokens a layer looks back at, itself included."""
    full_attention_every: int
    """Every so many layers one looks back at everything."""
    projector: Phase


def pretrain(settings: MiniGemma3Settings, data: Path, output: Path, threads: int) -> None:
    """Make a `save_pretrained` folder (safetensors, tokenizer, processor) from nothing.

    `data` is the pretraining folder of `gapinit data`. Same settings, data, package versions and
    thread count give the same weights.
    """
    make(settings, settings.projector, train_tokenizer, build, sight_of, data, output, threads)


def sight_of(backbone: Backbone) -> Sight:
    """Return the parts of Gemma 3 that lead from pixels to image tokens.

    Its projector does all that comes behind the vision tower: nothing is left to project.
    """
    model = backbone.model.model
    return Sight(
        see=lambda pixels: model.vision_tower(pixels, return_dict=True).last_hidden_state,
        tower=list(model.vision_tower.parameters()),
        query=model.multi_modal_projector,
        querying=list(model.multi_modal_projector.parameters()),
        project=lambda tokens: tokens,
        projecting=[],
    )


def train_tokenizer(corpus: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with Gemma's special tokens; any text encodes, as bytes if need be."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        # So often that the template's words are tokens: each costs time at every step.
        [*corpus, *len(corpus) * TEMPLATE_WORDS],
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        # By these names the real processor asks for them.
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        padding_side="right",
    )


def build(settings: MiniGemma3Settings, tokenizer: PreTrainedTokenizerFast) -> Gemma3Backbone:
    """Return an untrained Gemma 3 of the given sizes with its processor."""
    image_processor = Gemma3ImageProcessorPil(
        size={"height": settings.image_size, "width": settings.image_size},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    processor = Gemma3Processor(image_processor, tokenizer, image_seq_length=settings.image_tokens)
    ids = tokenizer.get_vocab()
    head_width = settings.decoder_width // settings.attention_heads
    every = settings.full_attention_every
    config = Gemma3Config(
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": settings.image_size,
            "patch_size": settings.patch_size,
            "hidden_size": settings.vision_width,
            "intermediate_size": 4 * settings.vision_width,
            "num_hidden_layers": settings.vision_layers,
            "num_attention_heads": settings.attention_heads,
            "vision_use_head": False,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": settings.decoder_width,
            # Three matrices and not two: as many numbers as 4 times the width has elsewhere.
            "intermediate_size": 8 * settings.decoder_width // 3,
            "num_hidden_layers": settings.decoder_layers,
            "num_attention_heads": settings.attention_heads,
            "num_key_value_heads": settings.key_value_heads,
            "head_dim": head_width,
            "query_pre_attn_scalar": head_width,
            "max_position_embeddings": settings.max_positions,
            "sliding_window": settings.sliding_window,
            "layer_types": [
                "sliding_attention" if (layer + 1) % every else "full_attention"
                for layer in range(settings.decoder_layers)
            ],
            "initializer_range": INITIAL_SCALE,
            "bos_token_id": ids["<bos>"],
            # As published for chats: either of them ends an answer.
            "eos_token_id": [ids["<eos>"], ids["<end_of_turn>"]],
            "pad_token_id": ids["<pad>"],
        },
        mm_tokens_per_image=settings.image_tokens,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
    )
    model = Gemma3ForConditionalGeneration(config)
    # Hugging Face draws weights with a standard deviation of 0.02, made for widths near 1,000; at
    # a width of 100 hardly any signal would come through. The projector's it leaves at zero.
    for seeing in (model.model.vision_tower, model.model.multi_modal_projector):
        for parameter in seeing.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=INITIAL_SCALE)
    prompts = settings.prompts.model_dump(exclude_none=True)
    return Gemma3Backbone(model, processor, replace(Gemma3Backbone.default_prompts, **prompts))
