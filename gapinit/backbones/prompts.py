"""Prompt templates, and the texts that a sample teaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.data.manifest import Kind, Sample

Segment = tuple[str, bool]
"""A piece of text, and whether it is learned."""


@dataclass(frozen=True)
class Prompts:
    """A template.

    A sequence is `head`, the image, `caption` or `question`, the answer, `end`. A conversation is
    `head`, the image, `chat`, the answer, `end`, then `turn`, answer and `end` for each question.
    """

    caption: str
    """Asks for a caption."""
    question: str
    """Asks a question; contains `{question}`."""
    chat: str
    """Asks the first question of a conversation; contains `{question}`."""
    turn: str
    """Asks each later question of a conversation; contains `{question}`."""
    head: str = ""
    """In front of the image, without the BOS that a tokenizer adds."""
    end: str | None = None
    """The token that ends an answer; None: the model's EOS."""
    spaced: bool = False
    """Whether pieces are separated by a space."""


def sample_prompt(prompts: Prompts, sample: Sample) -> str:
    """Return the prompt to evaluate a sample: for a caption, or the sample's question."""
    from gapinit.data.questions import Question

    if isinstance(sample, Question):
        return prompts.question.replace("{question}", sample.text)
    return prompts.caption


def training_texts(prompts: Prompts, kind: Kind, sample: Sample) -> list[list[Segment]]:
    """Return a sample's training texts, each as segments that are learned or not.

    One text for each caption of an image, one for a question, one for a conversation.
    """
    from gapinit.data.captions import CaptionedImage
    from gapinit.data.conversations import Conversation

    if isinstance(sample, CaptionedImage):
        return [[(prompts.caption, False), (caption, True)] for caption in sample.captions]
    if isinstance(sample, Conversation):
        text: list[Segment] = []
        for asked, said in sample.turns:
            template = prompts.turn if text else prompts.chat
            text += [(template.replace("{question}", asked), False), (said, True)]
        return [text]
    if kind != "vqa":
        raise GapinitError("POPE's questions are for evaluation, not for training")
    prompt = prompts.question.replace("{question}", sample.text)
    return [[(prompt, False), (most_common(sample.answers), True)]]


def most_common(answers: Sequence[str]) -> str:
    """Return the answer that most annotators gave; the first one among equals.

    ASSUME: the paper does not say which of the ten answers is learned.
    """
    return max(answers, key=list(answers).count)
