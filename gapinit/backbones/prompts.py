"""What each family of backbones is told before it answers: every prompt template in one place."""

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
    """The texts around an image's caption, and around a question's answer."""

    caption: str
    question: str
    """Holds `{question}`."""


PROMPTS = {
    # Source: the BLIP-2 authors' prompts, as in the model cards; captions have none.
    "blip2": Prompts(caption="", question="Question: {question} Short answer:"),
}


def sample_prompt(prompts: Prompts, sample: Sample) -> str:
    """Return what a model is given to predict this sample: the caption's prompt or a question."""
    from gapinit.data.questions import Question

    if isinstance(sample, Question):
        return prompts.question.format(question=sample.text)
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
            text += [(prompts.question.format(question=asked), False), (said, True)]
        return [text]
    if kind != "vqa":
        raise GapinitError("POPE's questions are for evaluation; nothing is trained on them")
    prompt = prompts.question.format(question=sample.text)
    return [[(prompt, False), (most_common(sample.answers), True)]]


def most_common(answers: Sequence[str]) -> str:
    """Return the answer that most annotators gave, the first of them if several are even.

    ASSUME: the paper does not say which of the ten answers is learned.
    """
    return max(answers, key=list(answers).count)
