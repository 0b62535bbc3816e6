"""Make `mini-blip2`: BLIP-2 (OPT) at a size that a laptop pretrains in minutes (`mini.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from gapinit.backbones.base import Backbone
from gapinit.backbones.blip2 import Blip2Backbone
from gapinit.backbones.mini import MiniSettings, make
from gapinit.backbones.pretraining import Phase, Sight

INITIAL_SCALE = 0.1


class MiniBlip2Settings(MiniSettings):
    """Sizes and pretraining recipe of one small BLIP-2, read from `config/backbones/*.yaml`."""

    qformer_layers: int
    qformer_width: int
    query_tokens: int
    qformer: Phase


def pretrain(settings: MiniBlip2Settings, data: Path, output: Path, threads: int) -> None:
    """Make a `save_pretrained` folder (safetensors, tokenizer, processor) from nothing.

    `data` is the pretraining folder of `gapinit data`. Same settings, data, package versions and
    thread count give the same weights.
    """
    make(settings, settings.qformer, train_tokenizer, build, sight_of, data, output, threads)


def sight_of(backbone: Backbone) -> Sight:
    """Return the parts of BLIP-2 that lead from pixels to image tokens."""
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


def train_tokenizer(corpus: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with OPT's special tokens; any text encodes, as bytes if need be."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # OPT's tokenizer puts its BOS, which is "</s>", in front of every text and no EOS behind it.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="right",
    )


def build(settings: MiniBlip2Settings, tokenizer: PreTrainedTokenizerFast) -> Blip2Backbone:
    """Return an untrained BLIP-2 of the given sizes with its processor."""
    image_processor = BlipImageProcessorPil(
        size={"height": settings.image_size, "width": settings.image_size},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    processor = Blip2Processor(image_processor, tokenizer, num_query_tokens=settings.query_tokens)
    config = Blip2Config(
        vision_config={
            "image_size": settings.image_size,
            "patch_size": settings.patch_size,
            "hidden_size": settings.vision_width,
            "intermediate_size": 4 * settings.vision_width,
            "num_hidden_layers": settings.vision_layers,
            "num_attention_heads": settings.attention_heads,
            "initializer_range": 0.02,
        },
        qformer_config={
            "hidden_size": settings.qformer_width,
            "intermediate_size": 4 * settings.qformer_width,
            "num_hidden_layers": settings.qformer_layers,
            "num_attention_heads": settings.attention_heads,
            "encoder_hidden_size": settings.vision_width,
            "cross_attention_frequency": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "vocab_size": 8,
        },
        text_config={
            "model_type": "opt",
            "vocab_size": len(processor.tokenizer),
            "hidden_size": settings.decoder_width,
            "word_embed_proj_dim": settings.decoder_width,
            "ffn_dim": 4 * settings.decoder_width,
            "num_hidden_layers": settings.decoder_layers,
            "num_attention_heads": settings.attention_heads,
            "max_position_embeddings": settings.max_positions,
            "dropout": 0.0,
            "init_std": 0.06,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        num_query_tokens=settings.query_tokens,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    # Hugging Face draws weights with a standard deviation of 0.02, made for widths near 1,000; at
    # a width of 100 hardly any signal would come through.
    for seeing in (model.vision_model, model.qformer, model.language_projection):
        for parameter in seeing.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=INITIAL_SCALE)
    return Blip2Backbone(model, processor)
