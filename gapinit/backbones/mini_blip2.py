"""Make `mini-blip2`: the real BLIP-2 classes at a size that a laptop pretrains in minutes.

The order is that of real backbones. A byte-level BPE tokenizer is trained on the corpus; the
language model learns to read (caption-like sentences, questions, facts, alt-texts) without any
image; vision tower and Q-Former learn which words an image's alt-texts hold (BLIP-2's first stage:
representation); then all that sees learns to speak through the language model (its second stage:
generation), from noisy alt-texts alone. What comes out sees and speaks, but captions in alt-text
style: fine-tuning has a style to change.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from pydantic import Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    PreTrainedTokenizerFast,
)

from gapinit.artifacts import atomic_folder
from gapinit.backbones.blip2 import Blip2Backbone
from gapinit.data.pretraining import read_alt_text, read_corpus
from gapinit.errors import GapinitError
from gapinit.progress import track
from gapinit.settings import Settings


class Phase(Settings):
    """One phase of pretraining: AdamW, warm-up and cosine decay."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = 50


class MiniBlip2Settings(Settings):
    """Sizes and pretraining recipe of one small BLIP-2, read from `config/backbones/*.yaml`."""

    name: str
    family: str
    pretraining: str
    """Dataset folder with `corpus.txt` and `alt_text.jsonl`."""
    seed: int
    image_size: int
    patch_size: int
    vision_layers: int
    vision_width: int
    qformer_layers: int
    qformer_width: int
    query_tokens: int
    decoder_layers: int
    decoder_width: int
    attention_heads: int
    vocabulary: int
    max_positions: int
    language: Phase
    grounding: Phase
    alignment: Phase


def pretrain(settings: MiniBlip2Settings, data: Path, output: Path, threads: int) -> None:
    """Make a `save_pretrained` folder (safetensors, tokenizer, processor) from nothing.

    `data` is the pretraining folder of `gapinit data`. Same settings, data, package versions and
    thread count give the same weights.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(settings.seed)
    corpus = read_corpus(data)
    pairs = read_alt_text(data)
    tokenizer = train_tokenizer(corpus, settings.vocabulary)
    backbone = build(settings, tokenizer)
    model = backbone.model.train().requires_grad_(True)
    _pretrain_language(backbone, corpus, settings)
    pixels, image_of_pair = _load_pixels(backbone, [path for path, _ in pairs])
    alt_texts = backbone.encode([text for _, text in pairs], settings.max_positions // 2)
    _pretrain_grounding(backbone, pixels, image_of_pair, alt_texts, settings)
    _pretrain_alignment(backbone, pixels, image_of_pair, alt_texts, settings)
    with atomic_folder(output) as folder:
        model.eval().save_pretrained(folder)
        backbone.processor.save_pretrained(folder)


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
    image_processor = BlipImageProcessor(
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
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        num_query_tokens=settings.query_tokens,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens, std=0.02)
    return Blip2Backbone(model, processor)


def _pretrain_language(
    backbone: Blip2Backbone, corpus: Sequence[str], settings: MiniBlip2Settings
) -> None:
    texts = backbone.encode(corpus, settings.max_positions // 2)
    batches = _batches(texts, settings.language.batch_size, random.Random(settings.seed))
    parameters = list(backbone.model.language_model.parameters())

    def loss() -> Tensor:
        return _text_loss(backbone, [texts[index] for index in next(batches)])

    _optimise(parameters, loss, settings.language, "language modelling")


def _pretrain_grounding(
    backbone: Blip2Backbone,
    pixels: Tensor,
    image_of_pair: Sequence[int],
    alt_texts: Sequence[Sequence[int]],
    settings: MiniBlip2Settings,
) -> None:
    """Teach vision tower and Q-Former which words stand in an image's alt-text.

    Each query token votes for words through a head that is thrown away afterwards; a word counts
    as seen if any token votes for it. Without this phase the language model learns to speak
    without looking, as a small caption loss rewards vision too late.
    """
    model, phase = backbone.model, settings.grounding
    head = torch.nn.Linear(settings.qformer_width, model.config.text_config.vocab_size)
    batches = _batches(alt_texts, phase.batch_size, random.Random(settings.seed + 1))
    seeing = [*model.vision_model.parameters(), *model.qformer.parameters(), model.query_tokens]

    def loss() -> Tensor:
        chosen = next(batches)
        images = pixels[[image_of_pair[index] for index in chosen]]
        outputs = model.get_image_features(images, return_dict=True).qformer_outputs
        votes = torch.logsumexp(head(outputs.last_hidden_state), dim=1)
        words = torch.zeros_like(votes)
        for row, index in enumerate(chosen):
            words[row, alt_texts[index]] = 1.0
        return torch.nn.functional.binary_cross_entropy_with_logits(votes, words) * 100.0

    _optimise([*seeing, *head.parameters()], loss, phase, "visual grounding")


def _pretrain_alignment(
    backbone: Blip2Backbone,
    pixels: Tensor,
    image_of_pair: Sequence[int],
    alt_texts: Sequence[Sequence[int]],
    settings: MiniBlip2Settings,
) -> None:
    """Teach all that sees to speak alt-text through the language model, which stays frozen."""
    phase = settings.alignment
    batches = _batches(alt_texts, phase.batch_size, random.Random(settings.seed + 2))
    # Frozen as in BLIP-2 itself: what the language model learnt from text, it keeps.
    backbone.model.language_model.requires_grad_(False)
    seeing = [value for value in backbone.model.parameters() if value.requires_grad]

    def loss() -> Tensor:
        chosen = next(batches)
        features = backbone.image_features(pixels[[image_of_pair[index] for index in chosen]])
        return _caption_loss(backbone, features, [alt_texts[index] for index in chosen])

    _optimise(seeing, loss, phase, "vision-language alignment")


def _batches(
    sequences: Sequence[Sequence[int]], batch_size: int, draw: random.Random
) -> Iterator[list[int]]:
    """Yield batches of random sequences of like length, without end: little padding is computed."""
    everything = range(len(sequences))
    while True:
        pool = sorted(
            draw.choices(everything, k=32 * batch_size), key=lambda index: len(sequences[index])
        )
        batches = [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
        draw.shuffle(batches)
        yield from batches


def _text_loss(backbone: Blip2Backbone, sequences: Sequence[Sequence[int]]) -> Tensor:
    width = backbone.hidden_size
    empty = torch.zeros(len(sequences), 0, width)
    return _caption_loss(backbone, empty, sequences)


def _caption_loss(
    backbone: Blip2Backbone, features: Tensor, sequences: Sequence[Sequence[int]]
) -> Tensor:
    """Return the mean cross-entropy of the texts, each ended by EOS, behind their image tokens."""
    ended = [[*ids, backbone.eos_token_id] for ids in sequences]
    ids, lengths = backbone.pad(ended)
    states = backbone.decode(backbone.embed(features, ids[:, :-1]))[:, features.shape[1] :]
    labelled = torch.arange(ids.shape[1] - 1)[None, :] < (lengths - 1)[:, None]
    logits = backbone.output_head(states[labelled])
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][labelled])


def _optimise(
    parameters: list[torch.nn.Parameter],
    loss: Callable[[], Tensor],
    phase: Phase,
    title: str,
) -> None:
    optimiser = torch.optim.AdamW(parameters, lr=phase.learning_rate, weight_decay=0.01)

    def rate(step: int) -> float:
        if step < phase.warmup_steps:
            return (step + 1) / phase.warmup_steps
        done = (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * done))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    for step in track(range(phase.steps), title):
        value = loss()
        if not torch.isfinite(value):
            raise GapinitError(f"{title}: the loss is not finite at step {step + 1}")
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()


def _load_pixels(backbone: Blip2Backbone, paths: Sequence[Path]) -> tuple[Tensor, list[int]]:
    """Decode each image once; return their pixels and, for each pair, its image's row."""
    from PIL import Image

    rows = {path: row for row, path in enumerate(dict.fromkeys(paths))}
    blocks = []
    for block in _blocks(list(rows), 512):
        images = []
        for path in block:
            with Image.open(path) as image:
                images.append(image.convert("RGB"))
        blocks.append(backbone.pixel_values(images))
    return torch.cat(blocks), [rows[path] for path in paths]


def _blocks(items: list[Path], size: int) -> Iterator[list[Path]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
