"""The phases of a small backbone's pretraining: language, vision, alignment.

Each phase is AdamW with warm-up and cosine decay over batches of texts of similar length.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from gapinit.backbones.base import Backbone
from gapinit.backbones.inputs import Images, Inputs
from gapinit.config.yaml_files import Settings
from gapinit.data.images import load_image
from gapinit.errors import GapinitError
from gapinit.progress import track


class Phase(Settings):
    """The recipe of one phase."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = 50
    text_every: int | None = Field(default=None, gt=0)
    """Alignment only: one batch of the corpus follows this number of batches of images."""


@dataclass(frozen=True)
class Sight:
    """The parts of a small model between pixels and the language model, trained in this order."""

    see: Callable[[Tensor], Tensor]
    """The vision tower: pixels of n images to patches, (n, patches, width)."""
    tower: list[nn.Parameter]
    query: Callable[[Tensor], Tensor]
    """A Q-Former, a merger or a projector: patches to fewer tokens, (n, tokens, width)."""
    querying: list[nn.Parameter]
    project: Callable[[Tensor], Tensor] = lambda tokens: tokens
    """These tokens to the language model's space, (n, tokens, d)."""
    projecting: Sequence[nn.Parameter] = ()
    grid: tuple[int, ...] = ()
    """Every image's grid, as in `Images`; all images have the same size."""


@dataclass(frozen=True)
class AltTexts:
    """Alt-texts as token ids, and their images."""

    texts: list[list[int]]
    encoded: list[tuple[list[int], list[int]]]
    """The texts in a caption's template: token ids and labels."""
    image_row: list[int]
    """For each text the row of its image in `pixels`."""
    pixels: Tensor


def load_alt_texts(backbone: Backbone, pairs: Sequence[tuple[Path, str]]) -> AltTexts:
    """Decode each image once and encode each text."""
    rows = {path: row for row, path in enumerate(dict.fromkeys(path for path, _ in pairs))}
    pixels = backbone.pixels([load_image(path) for path in rows])["pixel_values"]
    if pixels.dim() == 2:  # Qwen's processor concatenates the patches of all images
        pixels = pixels.reshape(len(rows), -1, pixels.shape[-1])
    texts = [text for _, text in pairs]
    return AltTexts(
        texts=_read(backbone, texts),
        encoded=backbone.encode_captions(texts, _max_tokens(backbone)),
        image_row=[rows[path] for path, _ in pairs],
        pixels=pixels,
    )


def _max_tokens(backbone: Backbone) -> int:
    """Return the most tokens of a text: half of the positions, images take the other half."""
    return int(backbone.text_config.max_position_embeddings) // 2


def _read(backbone: Backbone, texts: Sequence[str]) -> list[list[int]]:
    """Return token ids of plain texts, each behind BOS, or EOS where there is no BOS."""
    tokenizer = backbone.processor.tokenizer
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    room = _max_tokens(backbone) - 1
    return [[start, *ids[:room]] for ids in backbone.texts.token_ids(texts)]


def pretrain_language(backbone: Backbone, corpus: Sequence[str], phase: Phase, seed: int) -> None:
    """Train the language model on texts without images."""
    texts = _read(backbone, corpus)
    batches = _batches(texts, phase.batch_size, random.Random(seed))

    def loss() -> Tensor:
        return _text_loss(backbone, [texts[index] for index in next(batches)])

    _optimise(_language_parameters(backbone), loss, phase, "language modelling")


def pretrain_alignment(
    backbone: Backbone,
    sight: Sight,
    patches: Tensor,
    examples: AltTexts,
    corpus: Sequence[str],
    phase: Phase,
    seed: int,
) -> None:
    """Train the model to generate alt-texts (BLIP-2's second stage).

    `patches`: the vision tower's output for `AltTexts.pixels`; the tower is frozen, as in BLIP-2.
    ASSUME: unlike BLIP-2's, this small language model is trained: frozen, it did not learn to read
    image tokens within minutes (LOG.md). Batches of the corpus in between (`phase.text_every`)
    keep it from forgetting the first phase.
    """
    batches = _batches(examples.texts, phase.batch_size, random.Random(seed))
    texts = _read(backbone, corpus)
    reading = _batches(texts, phase.batch_size, random.Random(seed + 1))
    steps = count(1)

    def loss() -> Tensor:
        if phase.text_every and next(steps) % (phase.text_every + 1) == 0:
            return _text_loss(backbone, [texts[index] for index in next(reading)])
        chosen = next(batches)
        seen = patches[[examples.image_row[index] for index in chosen]]
        images = Images.equal(sight.project(sight.query(seen)))
        images = replace(images, grid=torch.tensor([sight.grid] * len(chosen), dtype=torch.int64))
        encoded = [examples.encoded[index] for index in chosen]
        inputs = backbone.embed(images, [ids for ids, _ in encoded])
        return _loss(backbone, inputs, [labels for _, labels in encoded])

    parameters = [*sight.querying, *sight.projecting, *_language_parameters(backbone)]
    _optimise(parameters, loss, phase, "vision-language alignment")


def _language_parameters(backbone: Backbone) -> list[nn.Parameter]:
    """Return the language model's parameters, shared ones once."""
    return list(nn.ModuleList([backbone.decoder, backbone.output_head]).parameters())


def pretrain_words(
    title: str,
    backbone: Backbone,
    part: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    given: Tensor,
    examples: AltTexts,
    phase: Phase,
    seed: int,
) -> None:
    """Train a part of the vision side to predict which words an image's alt-text contains.

    `part` maps rows of `given` (one an image) to (n, tokens, width), and `parameters` are its
    weights. Each token scores all words through a head that is discarded afterwards. The loss is
    the binary cross-entropy of each word's highest score, summed over words.

    Real backbones start from such a vision tower (CLIP, EVA). Without this phase the language model
    learns to ignore the image: the loss of a whole caption rewards vision too little (LOG.md).
    """
    head = nn.Linear(part(given[:1]).shape[-1], backbone.text_config.vocab_size)
    nn.init.constant_(head.bias, -3.0)  # most words are absent from any one image
    batches = _batches(examples.texts, phase.batch_size, random.Random(seed))

    def loss() -> Tensor:
        chosen = next(batches)
        tokens = part(given[[examples.image_row[index] for index in chosen]])
        votes = head(tokens).amax(dim=1)
        words = torch.zeros_like(votes)
        for row, index in enumerate(chosen):
            words[row, examples.texts[index]] = 1.0
        mean = torch.nn.functional.binary_cross_entropy_with_logits(votes, words)
        return mean * words.shape[1]

    _optimise([*parameters, *head.parameters()], loss, phase, title)


def _batches(
    sequences: Sequence[Sequence[int]], batch_size: int, draw: random.Random
) -> Iterator[list[int]]:
    """Yield endless random batches of sequences of similar length, to avoid padding."""
    everything = range(len(sequences))
    while True:
        pool = sorted(
            draw.choices(everything, k=32 * batch_size), key=lambda index: len(sequences[index])
        )
        batches = [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
        draw.shuffle(batches)
        yield from batches


def _text_loss(backbone: Backbone, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return the loss of plain texts, each followed by EOS."""
    ended = [[*ids[1:], backbone.eos_token_id] for ids in sequences]
    return _loss(backbone, backbone.embed_texts(sequences), ended)


def _loss(backbone: Backbone, inputs: Inputs, labels: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean cross-entropy of the labels behind each sequence's prefix."""
    expected = torch.full(inputs.states.shape[:2], -100)
    for row, (start, found) in enumerate(zip(inputs.prefix_length.tolist(), labels, strict=True)):
        expected[row, start : start + len(found)] = torch.tensor(found)
    labelled = expected != -100
    logits = backbone.output_head(backbone.decode(inputs)[labelled])
    return torch.nn.functional.cross_entropy(logits, expected[labelled])


def _optimise(
    parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor], phase: Phase, title: str
) -> None:
    optimiser = torch.optim.AdamW(
        parameters, lr=phase.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )

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
