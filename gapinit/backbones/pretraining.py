"""The phases of a small backbone's pretraining: read, see, and speak of what is seen.

Each phase is AdamW with warm-up and cosine decay over batches of texts of like length.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from gapinit.backbones.base import Backbone
from gapinit.backbones.inputs import Images, Inputs
from gapinit.config.yaml_files import Settings
from gapinit.data.images import load_image
from gapinit.errors import GapinitError
from gapinit.progress import track

if TYPE_CHECKING:
    from PIL.Image import Image


class Phase(Settings):
    """One phase of pretraining: AdamW, warm-up and cosine decay."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = 50
    text_every: int | None = Field(default=None, gt=0)
    """Alignment: one batch of the corpus follows this number of batches of images."""


@dataclass(frozen=True)
class Sight:
    """The parts of a small model that lead from pixels to image tokens, trained in turn."""

    see: Callable[[Tensor], Tensor]
    """The vision tower: pixels of n images to their patches, (n, patches, width)."""
    tower: list[nn.Parameter]
    query: Callable[[Tensor], Tensor]
    """Patches to fewer tokens, (n, tokens, width): a Q-Former, a merger, a projector."""
    querying: list[nn.Parameter]
    project: Callable[[Tensor], Tensor] = lambda tokens: tokens
    """Those to the language model's space, (n, tokens, d)."""
    projecting: Sequence[nn.Parameter] = ()
    grid: tuple[int, ...] = ()
    """An image's grid, where positions depend on it; all images have one size."""

    def images(self, tokens: Tensor) -> Images:
        """Return projected tokens as the backbone takes them."""
        grid = torch.tensor(self.grid, dtype=torch.int64).expand(len(tokens), -1)
        return replace(Images.equal(tokens), grid=grid)


@dataclass(frozen=True)
class AltTexts:
    """Alt-texts as token ids, and the images that they belong to."""

    texts: list[list[int]]
    encoded: list[tuple[list[int], list[int]]]
    """The same in the template of a caption: token ids and labels."""
    image_row: list[int]
    """For each text the row of its image in `pixels` and `patches`."""
    pixels: Tensor
    patches: Tensor
    """(images, patches, width): the vision tower's output, empty until that is trained."""

    @torch.no_grad()
    def seen_by(self, sight: Sight) -> AltTexts:
        """Return the same with the vision tower's output; the tower is frozen from here on."""
        patches = [sight.see(block) for block in self.pixels.split(512)]
        return replace(self, patches=torch.cat(patches))


def load_alt_texts(backbone: Backbone, pairs: Sequence[tuple[Path, str]]) -> AltTexts:
    """Decode each image once and encode each text."""
    rows = {path: row for row, path in enumerate(dict.fromkeys(path for path, _ in pairs))}
    paths = list(rows)
    blocks = [
        _pixels(backbone, [load_image(path) for path in paths[start : start + 512]])
        for start in range(0, len(paths), 512)
    ]
    texts = [text for _, text in pairs]
    return AltTexts(
        texts=_read(backbone, texts),
        encoded=backbone.encode_captions(texts, _max_tokens(backbone)),
        image_row=[rows[path] for path, _ in pairs],
        pixels=torch.cat(blocks),
        patches=torch.empty(0),
    )


def _pixels(backbone: Backbone, images: Sequence[Image]) -> Tensor:
    """Return the pixels of images of one size, (n, ...): some processors concatenate them."""
    pixels = backbone.pixels(images)["pixel_values"]
    return pixels.reshape(len(images), -1, pixels.shape[-1]) if pixels.dim() == 2 else pixels


def _max_tokens(backbone: Backbone) -> int:
    """Return the most tokens of a text: half of the positions, images take the rest."""
    return int(backbone.text_config.max_position_embeddings) // 2


def _read(backbone: Backbone, texts: Sequence[str]) -> list[list[int]]:
    """Return token ids of plain texts, each behind the token that begins one."""
    tokenizer = backbone.processor.tokenizer
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    room = _max_tokens(backbone) - 1
    return [[start, *ids[:room]] for ids in backbone.texts.token_ids(texts)]


def pretrain_language(backbone: Backbone, corpus: Sequence[str], phase: Phase, seed: int) -> None:
    """Teach the language model to read: texts alone, no image."""
    texts = _read(backbone, corpus)
    batches = _batches(texts, phase.batch_size, random.Random(seed))

    def loss() -> Tensor:
        return _text_loss(backbone, [texts[index] for index in next(batches)])

    _optimise(_language_parameters(backbone), loss, phase, "language modelling")


def pretrain_tower(
    backbone: Backbone, sight: Sight, examples: AltTexts, phase: Phase, seed: int
) -> None:
    """Teach the vision tower which words stand in an image's alt-text.

    Each patch votes for words through a head that is thrown away afterwards; a word counts as
    seen if any patch votes for it. Real backbones start from such a tower (CLIP, EVA). Without it
    the language model learns to speak without looking: the loss of a whole caption rewards vision
    too little, too late (LOG.md).
    """

    def tokens(rows: list[int]) -> Tensor:
        return sight.see(examples.pixels[rows])

    title = "vision tower: words in images"
    _pretrain_words(title, backbone, tokens, sight.tower, examples, phase, seed)


def pretrain_query(
    backbone: Backbone, sight: Sight, examples: AltTexts, phase: Phase, seed: int
) -> None:
    """Teach the image tokens the same words (BLIP-2's first stage: representation)."""

    def tokens(rows: list[int]) -> Tensor:
        return sight.query(examples.patches[rows])

    title = "image tokens: words in images"
    _pretrain_words(title, backbone, tokens, sight.querying, examples, phase, seed)


def pretrain_alignment(
    backbone: Backbone,
    sight: Sight,
    examples: AltTexts,
    corpus: Sequence[str],
    phase: Phase,
    seed: int,
) -> None:
    """Teach the model to speak of what it sees (BLIP-2's second stage: generation).

    The vision tower is frozen, as in BLIP-2.
    ASSUME: unlike BLIP-2's, this small language model is trained, too: frozen, it did not learn
    within minutes to read image tokens (LOG.md). Batches of the corpus in between
    (`phase.text_every`) keep what it has read, as freezing would.
    """
    batches = _batches(examples.texts, phase.batch_size, random.Random(seed))
    texts = _read(backbone, corpus)
    reading = _batches(texts, phase.batch_size, random.Random(seed + 1))
    steps = count(1)

    def loss() -> Tensor:
        if phase.text_every and next(steps) % (phase.text_every + 1) == 0:
            return _text_loss(backbone, [texts[index] for index in next(reading)])
        chosen = next(batches)
        seen = examples.patches[[examples.image_row[index] for index in chosen]]
        images = sight.images(sight.project(sight.query(seen)))
        encoded = [examples.encoded[index] for index in chosen]
        inputs = backbone.embed(images, [ids for ids, _ in encoded])
        return _loss(backbone, inputs, [labels for _, labels in encoded])

    parameters = [*sight.querying, *sight.projecting, *_language_parameters(backbone)]
    _optimise(parameters, loss, phase, "vision-language alignment")


def _language_parameters(backbone: Backbone) -> list[nn.Parameter]:
    """Return the language model's parameters, each once: embeddings may be the output matrix."""
    return list(nn.ModuleList([backbone.decoder, backbone.output_head]).parameters())


def _pretrain_words(
    title: str,
    backbone: Backbone,
    tokens: Callable[[list[int]], Tensor],
    parameters: Sequence[nn.Parameter],
    examples: AltTexts,
    phase: Phase,
    seed: int,
) -> None:
    """Train parameters so that some token of an image votes for each word of its alt-text.

    `tokens`: rows of `AltTexts.pixels` to (n, tokens, width). The loss is the cross-entropy of the
    strongest vote for each word, summed over words.
    """
    head = nn.Linear(tokens([0]).shape[-1], backbone.text_config.vocab_size)
    nn.init.constant_(head.bias, -3.0)  # most words are absent from any one image
    batches = _batches(examples.texts, phase.batch_size, random.Random(seed))

    def loss() -> Tensor:
        chosen = next(batches)
        votes = head(tokens([examples.image_row[index] for index in chosen])).amax(dim=1)
        words = torch.zeros_like(votes)
        for row, index in enumerate(chosen):
            words[row, examples.texts[index]] = 1.0
        mean = torch.nn.functional.binary_cross_entropy_with_logits(votes, words)
        return mean * words.shape[1]

    _optimise([*parameters, *head.parameters()], loss, phase, title)


def _batches(
    sequences: Sequence[Sequence[int]], batch_size: int, draw: random.Random
) -> Iterator[list[int]]:
    """Yield endless batches of random sequences of similar length, which need little padding."""
    everything = range(len(sequences))
    while True:
        pool = sorted(
            draw.choices(everything, k=32 * batch_size), key=lambda index: len(sequences[index])
        )
        batches = [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
        draw.shuffle(batches)
        yield from batches


def _text_loss(backbone: Backbone, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return the loss of plain texts, each ended by EOS."""
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
    parameters: Sequence[nn.Parameter],
    loss: Callable[[], Tensor],
    phase: Phase,
    title: str,
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
