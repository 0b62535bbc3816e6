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

import torch
from pydantic import Field
from torch import Tensor

from gapinit.backbones.blip2 import Blip2Backbone
from gapinit.data.images import load_image
from gapinit.errors import GapinitError
from gapinit.progress import track
from gapinit.settings import Settings


class Phase(Settings):
    """One phase of pretraining: AdamW, warm-up and cosine decay."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = 50
    text_every: int | None = Field(default=None, gt=0)
    """Alignment: after so many batches of images one batch of the corpus is learned, too."""


@dataclass(frozen=True)
class AltTexts:
    """Alt-texts as token ids, and the images that they belong to."""

    texts: list[list[int]]
    image_row: list[int]
    """For each text the row of its image in `pixels` and `patches`."""
    pixels: Tensor
    patches: Tensor
    """(images, patches, width): the vision tower's output, empty until that is trained."""

    @torch.no_grad()
    def seen_by(self, backbone: Blip2Backbone) -> AltTexts:
        """Return the same with the output of the vision tower, which is frozen from here on."""
        vision = backbone.model.vision_model
        patches = [
            vision(block, return_dict=True).last_hidden_state for block in self.pixels.split(512)
        ]
        return replace(self, patches=torch.cat(patches))


def load_alt_texts(backbone: Blip2Backbone, pairs: Sequence[tuple[Path, str]]) -> AltTexts:
    """Decode each image once and encode each text."""
    rows = {path: row for row, path in enumerate(dict.fromkeys(path for path, _ in pairs))}
    paths = list(rows)
    blocks = [
        backbone.pixel_values([load_image(path) for path in paths[start : start + 512]])
        for start in range(0, len(paths), 512)
    ]
    return AltTexts(
        texts=backbone.encode([text for _, text in pairs], max_tokens(backbone)),
        image_row=[rows[path] for path, _ in pairs],
        pixels=torch.cat(blocks),
        patches=torch.empty(0),
    )


def max_tokens(backbone: Blip2Backbone) -> int:
    """Return how many tokens of a text are read: half of the positions, images take the rest."""
    return int(backbone.model.config.text_config.max_position_embeddings) // 2


def pretrain_language(
    backbone: Blip2Backbone, corpus: Sequence[str], phase: Phase, seed: int
) -> None:
    """Teach the language model to read: texts alone, no image."""
    texts = backbone.encode(corpus, max_tokens(backbone))
    batches = _batches(texts, phase.batch_size, random.Random(seed))
    parameters = list(backbone.model.language_model.parameters())

    def loss() -> Tensor:
        return _text_loss(backbone, [texts[index] for index in next(batches)])

    _optimise(parameters, loss, phase, "language modelling")


def pretrain_vision(backbone: Blip2Backbone, examples: AltTexts, phase: Phase, seed: int) -> None:
    """Teach the vision tower which words stand in an image's alt-text.

    Each patch votes for words through a head that is thrown away afterwards; a word counts as
    seen if any patch votes for it. Real backbones start from such a tower (CLIP, EVA). Without it
    the language model learns to speak without looking: the loss of a whole caption rewards vision
    too little, too late (LOG.md).
    """
    vision = backbone.model.vision_model

    def tokens(rows: list[int]) -> Tensor:
        return vision(examples.pixels[rows], return_dict=True).last_hidden_state

    head = _voting_head(backbone, vision.config.hidden_size)
    _optimise(
        [*vision.parameters(), *head.parameters()],
        _voting_loss(tokens, head, examples, phase, seed),
        phase,
        "vision tower: words in images",
    )


def pretrain_qformer(backbone: Blip2Backbone, examples: AltTexts, phase: Phase, seed: int) -> None:
    """Teach the Q-Former's query tokens the same words (BLIP-2's first stage: representation)."""
    model = backbone.model

    def tokens(rows: list[int]) -> Tensor:
        queries = model.query_tokens.expand(len(rows), -1, -1)
        seen = examples.patches[rows]
        return model.qformer(query_embeds=queries, encoder_hidden_states=seen)[0]

    head = _voting_head(backbone, model.qformer.config.hidden_size)
    _optimise(
        [*model.qformer.parameters(), model.query_tokens, *head.parameters()],
        _voting_loss(tokens, head, examples, phase, seed),
        phase,
        "Q-Former: words in images",
    )


def pretrain_alignment(
    backbone: Blip2Backbone, examples: AltTexts, corpus: Sequence[str], phase: Phase, seed: int
) -> None:
    """Teach the model to speak of what it sees (BLIP-2's second stage: generation).

    The vision tower is frozen, as in BLIP-2.
    ASSUME: unlike BLIP-2's, this small language model is trained along: frozen, it did not learn
    within minutes to read image tokens (LOG.md). So that it keeps what it has read, as a frozen one
    does, batches of the corpus come between (`phase.text_every`).
    """
    model = backbone.model
    batches = _batches(examples.texts, phase.batch_size, random.Random(seed))
    modules = (model.qformer, model.language_projection, model.language_model)
    texts = backbone.encode(corpus, max_tokens(backbone))
    reading = _batches(texts, phase.batch_size, random.Random(seed + 1))
    steps = count(1)

    def loss() -> Tensor:
        if phase.text_every and next(steps) % (phase.text_every + 1) == 0:
            return _text_loss(backbone, [texts[index] for index in next(reading)])
        chosen = next(batches)
        seen = examples.patches[[examples.image_row[index] for index in chosen]]
        queries = model.query_tokens.expand(len(chosen), -1, -1)
        tokens = model.qformer(query_embeds=queries, encoder_hidden_states=seen)[0]
        features = model.language_projection(tokens)
        return _caption_loss(backbone, features, [examples.texts[index] for index in chosen])

    _optimise(
        [*(value for module in modules for value in module.parameters()), model.query_tokens],
        loss,
        phase,
        "vision-language alignment",
    )


def _voting_head(backbone: Blip2Backbone, width: int) -> torch.nn.Linear:
    """Return a head from image tokens to words, most of which are absent from any one image."""
    head = torch.nn.Linear(width, backbone.model.config.text_config.vocab_size)
    torch.nn.init.constant_(head.bias, -3.0)
    return head


def _voting_loss(
    tokens: Callable[[list[int]], Tensor],
    head: torch.nn.Linear,
    examples: AltTexts,
    phase: Phase,
    seed: int,
) -> Callable[[], Tensor]:
    """Return the cross-entropy of the strongest vote for each word, summed over words."""
    batches = _batches(examples.texts, phase.batch_size, random.Random(seed))

    def loss() -> Tensor:
        chosen = next(batches)
        votes = head(tokens([examples.image_row[index] for index in chosen])).amax(dim=1)
        words = torch.zeros_like(votes)
        for row, index in enumerate(chosen):
            words[row, examples.texts[index]] = 1.0
        mean = torch.nn.functional.binary_cross_entropy_with_logits(votes, words)
        return mean * words.shape[1]

    return loss


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
