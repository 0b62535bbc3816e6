"""What a backbone is told before it answers, and which words of a sample are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.data.manifest import Kind, Sample

Segment = tuple[str, bool]
"""A piece of text, and whether it is learned (true) or given (false)."""


@dataclass(frozen=True)
class Prompts:
    """The texts around an image, its caption, and the answers to questions.

    A sequence is `head`, the image, `caption` or `question`, the answer, `end`. In a conversation
    `chat` stands for `question`, then come `turn`, the next answer, `end` and so on.
    """

    caption: str
    """Asks for a caption."""
    question: str
    """Asks a question; holds `{question}`."""
    chat: str
    """Asks the first question of a conversation; holds `{question}`."""
    turn: str
    """Asks a further question, behind an answer; holds `{question}`."""
    head: str = ""
    """In front of the image. What a tokenizer puts before every text (BOS) does not stand here."""
    end: str | None = None
    """The token that ends an answer; None: the model's own EOS."""
    spaced: bool = False
    """Whether a space stands between the pieces."""


def sample_prompt(prompts: Prompts, sample: Sample) -> str:
    """Return what a model is given to predict this sample: the caption's prompt or a question."""
    from gapinit.data.questions import Question

    if isinstance(sample, Question):
        return prompts.question.replace("{question}", sample.text)
    return prompts.caption


def training_texts(prompts: Prompts, kind: Kind, sample: Sample) -> list[list[Segment]]:
    """Return the texts that a sample teaches, each as given and learned segments.

    A captioned image teaches each of its captions, a question its answer, a conversation all its
    answers in one text.
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
        raise GapinitError("POPE's questions are for evaluation; nothing is trained on them")
    prompt = prompts.question.replace("{question}", sample.text)
    return [[(prompt, False), (most_common(sample.answers), True)]]


def most_common(answers: Sequence[str]) -> str:
    """Return the answer that most annotators gave, the first of them if several are even.

    ASSUME: the paper does not say which of the ten answers is learned.
    """
    return max(answers, key=list(answers).count)
