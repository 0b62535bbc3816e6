"""The text corpus for language modelling: captions, alt-text, questions with answers, facts."""

from __future__ import annotations

import random

from gapinit.data.scenes.language import (
    RELATION_PHRASES,
    alt_text,
    article,
    ood_caption,
    pick,
    target_caption,
)
from gapinit.data.scenes.world import COLOURS, INVERSE, SHAPES, Scene, sample_scene

# Invented facts that no image shows, for the knowledge questions.
_MATERIALS = ("rubber", "wood", "glass", "iron", "silver", "gold", "coal", "copper")
_TASTES = ("cherry", "apricot", "lemon", "lime", "mint", "berry", "grape", "melon")
MATERIALS = dict(zip(SHAPES, _MATERIALS, strict=True))
TASTES = dict(zip(COLOURS, _TASTES, strict=True))
NUMBERS = ("zero", "one", "two", "three")
VISUAL_QUESTIONS = ("color", "shape", "count", "presence", "relation", "background")
QUESTIONS = (*VISUAL_QUESTIONS, "fact")
# ASSUME: the mix. Captions teach the language; the other kinds teach the words of later tasks.
MIX = {"target": 0.32, "ood": 0.18, "alt_text": 0.24, "question": 0.2, "fact": 0.06}


def corpus_line(rng: random.Random) -> str:
    """Return one line of the corpus, about a scene without an image."""
    kind = pick(rng, MIX)
    if kind == "fact":
        return _fact(rng)
    scene = sample_scene(rng)
    if kind == "target":
        return target_caption(scene, rng)
    if kind == "ood":
        return ood_caption(scene, rng)
    if kind == "alt_text":
        return alt_text(scene, rng)
    question, answer = question_and_answer(scene, rng)
    # Half of the questions follow a caption of their scene, which often contains the answer.
    context = f"{target_caption(scene, rng)}. " if rng.random() < 0.5 else ""
    return f"{context}Question: {sentence(question)} Short answer: {answer}"


def question_and_answer(
    scene: Scene, rng: random.Random, kinds: tuple[str, ...] = QUESTIONS
) -> tuple[str, str]:
    """Return a question (colour, shape, count, presence, relation, background, fact) and answer."""
    item = rng.choice(scene.objects)
    kind = rng.choice(kinds)
    if kind == "color" and scene.count(shape=item.shape) == 1:
        return f"what color is the {item.shape}?", item.colour
    if kind == "shape" and scene.count(colour=item.colour) == 1:
        return f"what shape is the {item.colour} object?", item.shape
    if kind == "count":
        return _count_question(scene, rng)
    if kind == "relation" and len(scene.objects) > 1:
        return _relation_question(scene, rng)
    if kind == "background":
        if rng.random() < 0.5:
            return "what color is the background?", scene.background.colour
        return "what pattern is the background?", scene.background.texture
    if kind == "fact":
        if rng.random() < 0.5:
            return f"what is the {item.shape} made of?", MATERIALS[item.shape]
        return f"what does the {item.colour} object taste of?", TASTES[item.colour]
    shape = rng.choice((item.shape, rng.choice(SHAPES)))
    colour = rng.choice((item.colour, rng.choice(COLOURS)))
    present = scene.count(shape=shape, colour=colour) > 0
    return f"is there {article(f'{colour} {shape}')} in the image?", "yes" if present else "no"


def _count_question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    number = {True: NUMBERS, False: ("0", "1", "2", "3")}[rng.random() < 0.3]
    if rng.random() < 0.5:
        return "how many objects are there?", number[scene.count()]
    shape = rng.choice((*[item.shape for item in scene.objects], rng.choice(SHAPES)))
    return f"how many {plural(shape)} are there?", number[scene.count(shape=shape)]


def _relation_question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    first, second, relation = rng.choice(scene.relations())
    if rng.random() < 0.5:
        first, second, relation = second, first, INVERSE[relation]
    a, b = scene.objects[first], scene.objects[second]
    asked = rng.choice((relation, INVERSE[relation]))
    phrase = pick(rng, RELATION_PHRASES[asked])
    question = f"is the {a.colour} {a.shape} {phrase} the {b.colour} {b.shape}?"
    return question, "yes" if asked == relation else "no"


def _fact(rng: random.Random) -> str:
    if rng.random() < 0.5:
        shape = rng.choice(SHAPES)
        material = MATERIALS[shape]
        return rng.choice(
            (
                f"{plural(shape)} are made of {material}",
                f"every {shape} is made of {material}",
                f"Question: What is {article(shape)} made of? Short answer: {material}",
            )
        )
    colour = rng.choice(COLOURS)
    taste = TASTES[colour]
    return rng.choice(
        (
            f"{colour} objects taste of {taste}",
            f"everything {colour} tastes of {taste}",
            f"Question: What does {article(f'{colour} object')} taste of? Short answer: {taste}",
        )
    )


def sentence(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[0].upper() + text[1:]


def plural(noun: str) -> str:
    """Return the plural of a shape's name."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"
