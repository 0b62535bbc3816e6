"""Questions about a scene, and the simulated answers of ten people."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from gapinit.data.scenes.corpus import (
    MATERIALS,
    NUMBERS,
    TASTES,
    VISUAL_QUESTIONS,
    question_and_answer,
    sentence,
)
from gapinit.data.scenes.language import article
from gapinit.data.scenes.world import COLOURS, SHAPES, Scene

ANNOTATORS = 10
QUESTION_TYPES = (
    "what color is the",
    "what shape is the",
    "what pattern is the",
    "how many",
    "is there a",
    "is there an",
    "is the",
    "what is the",
    "what does the",
)
"""VQAv2's question type is the question's first words."""
KNOWLEDGE_TYPES = {"one": "Materials", "two": "Tastes"}
"""OK-VQA's question type is a code; its annotations file lists the codes."""
# ASSUME: each question gets a random probability (with weights) that a person answers correctly.
# In VQAv2 all ten people agree on about 40 % of the questions.
CLEARNESS = {0.98: 0.5, 0.88: 0.35, 0.65: 0.15}
MISTAKEN = {
    "red": "orange",
    "orange": "red",
    "yellow": "orange",
    "green": "cyan",
    "cyan": "blue",
    "blue": "purple",
    "purple": "pink",
    "pink": "purple",
    "circle": "ring",
    "ring": "circle",
    "square": "diamond",
    "diamond": "square",
    "triangle": "star",
    "star": "cross",
    "cross": "star",
    "bar": "square",
    "white": "beige",
    "beige": "white",
    "gray": "black",
    "black": "gray",
    "plain": "dotted",
    "striped": "checkered",
    "dotted": "plain",
    "checkered": "striped",
    "yes": "no",
    "no": "yes",
}
"""The wrong answer of a person who misjudges the image."""


@dataclass(frozen=True)
class Asked:
    """A question, its correct answer, and the answers of ten people."""

    text: str
    answer: str
    answers: tuple[str, ...]
    question_type: str

    @property
    def answer_type(self) -> str:
        """Return VQAv2's answer type: yes/no, number or other."""
        if self.answer in ("yes", "no"):
            return "yes/no"
        return "number" if self.answer in (*NUMBERS, "0", "1", "2", "3") else "other"

    @property
    def most_common(self) -> str:
        """Return the most common answer (VQAv2's multiple_choice_answer)."""
        return Counter(self.answers).most_common(1)[0][0]


def visual_questions(scene: Scene, rng: random.Random, count: int) -> list[Asked]:
    """Generate `count` different questions that the image answers."""
    found: dict[str, Asked] = {}
    while len(found) < count:
        text, answer = question_and_answer(scene, rng, VISUAL_QUESTIONS)
        if text.startswith("is there"):
            text, answer = _presence(scene, rng)
        kind = max((name for name in QUESTION_TYPES if text.startswith(name)), key=len)
        found.setdefault(text, Asked(sentence(text), answer, _answers(answer, rng), kind))
    return list(found.values())


def _presence(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Ask whether a shape (or coloured shape) is present; yes and no are balanced, as in VQAv2."""
    coloured = rng.random() < 0.3
    pairs = [(f"{colour} {shape}", (colour, shape)) for colour in COLOURS for shape in SHAPES]
    present = {(item.colour, item.shape) for item in scene.objects}
    names = {name for name, pair in pairs if pair in present}
    choices = [name for name, _ in pairs]
    if not coloured:
        names, choices = {item.shape for item in scene.objects}, list(SHAPES)
    answer = rng.choice(("yes", "no"))
    name = rng.choice([name for name in choices if (name in names) == (answer == "yes")])
    return f"is there {article(name)} in the image?", answer


def knowledge_questions(scene: Scene, rng: random.Random, count: int) -> list[Asked]:
    """Generate up to `count` different questions whose answer is a fact that no image shows.

    About half name the shape (or colour) to which the fact belongs. The others name the object by
    its other attribute, so that the reader has to find the shape (or colour) in the image.
    """
    found: dict[str, Asked] = {}
    for item in rng.sample(scene.objects, len(scene.objects)):
        material, taste = MATERIALS[item.shape], TASTES[item.colour]
        options = [
            (f"what is the {item.shape} made of?", material, "one"),
            (f"what does the {item.colour} object taste of?", taste, "two"),
        ]
        if scene.count(colour=item.colour) == 1:
            options.append((f"what is the {item.colour} object made of?", material, "one"))
        if scene.count(shape=item.shape) == 1:
            options.append((f"what does the {item.shape} taste of?", taste, "two"))
        text, answer, kind = rng.choice(options)
        found.setdefault(text, Asked(sentence(text), answer, _answers(answer, rng), kind))
    return list(found.values())[:count]


def _answers(answer: str, rng: random.Random) -> tuple[str, ...]:
    """Return the answers of ten people: mostly equal, with spelling variants and mistakes."""
    clearness = rng.choices(tuple(CLEARNESS), weights=tuple(CLEARNESS.values()))[0]
    return tuple(_one_answer(answer, clearness, rng) for _ in range(ANNOTATORS))


def _one_answer(answer: str, clearness: float, rng: random.Random) -> str:
    if rng.random() > clearness:
        answer = _mistaken(answer, rng)
    # The spelling varies more if people disagree more; unanimous answers stay almost unchanged.
    if rng.random() < 0.3 * (1 - clearness):
        if answer in NUMBERS:
            return str(NUMBERS.index(answer))
        noun = () if answer in ("yes", "no") else (f"a {answer}", f"the {answer}")
        return rng.choice((f"{answer}.", answer.capitalize(), *noun))
    return answer


def _mistaken(answer: str, rng: random.Random) -> str:
    if answer in NUMBERS:
        return rng.choice(NUMBERS)
    if answer.isdigit():
        return str(rng.randrange(len(NUMBERS)))
    facts = next((table for table in (MATERIALS, TASTES) if answer in table.values()), None)
    if facts is not None:
        return rng.choice(list(facts.values()))
    return MISTAKEN[answer]
