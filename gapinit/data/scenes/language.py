"""The texts about a scene: target captions, out-of-domain captions and alt-text.

Captions are sentences; each omits one fact, as human annotators do. Alt-text is telegraphic and
noisy, but covers all facts of the captions: shape, colour, size, relation or place, and background.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from gapinit.data.scenes.world import (
    BACKGROUND_COLOURS,
    COLOURS,
    INVERSE,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
)

Weighted = dict[str, float]

SIZE_WORDS: dict[str, Weighted] = {
    "small": {"small": 0.8, "little": 0.2},
    "large": {"large": 0.8, "big": 0.2},
}
RELATION_PHRASES: dict[str, Weighted] = {
    "left": {"to the left of": 0.75, "on the left of": 0.25},
    "right": {"to the right of": 0.75, "on the right of": 0.25},
    "above": {"above": 0.8, "over": 0.2},
    "below": {"below": 0.8, "under": 0.2},
}
PLACE_PHRASES: dict[str, Weighted] = {
    "top left": {"in the top left corner": 0.8, "at the top left": 0.2},
    "top": {"at the top": 1.0},
    "top right": {"in the top right corner": 0.8, "at the top right": 0.2},
    "left": {"on the left side": 0.8, "at the left": 0.2},
    "center": {"in the center": 0.8, "in the middle": 0.2},
    "right": {"on the right side": 0.8, "at the right": 0.2},
    "bottom left": {"in the bottom left corner": 0.8, "at the bottom left": 0.2},
    "bottom": {"at the bottom": 1.0},
    "bottom right": {"in the bottom right corner": 0.8, "at the bottom right": 0.2},
}
TARGET_VERBS: Weighted = {"": 0.45, "sits": 0.25, "is": 0.2, "lies": 0.1}
TARGET_OPENINGS: Weighted = {"": 0.85, "there is": 0.15}
TARGET_BACKGROUNDS: Weighted = {"on": 0.8, "against": 0.2}
OOD_FRAMES: Weighted = {
    "in this picture {subject} can be seen {where}": 0.3,
    "the photograph shows {subject} that was placed {where}": 0.25,
    "someone has put {subject} {where}": 0.2,
    "{subject} is resting {where}": 0.15,
    "here we can look at {subject} which appears {where}": 0.1,
}
OOD_BACKGROUNDS: Weighted = {"in front of": 0.6, "before": 0.4}
JUNK = ("stock photo", "img {number:04d}", "free download", "clipart", "hd wallpaper", "buy now")
# ASSUME: the noise of alt-text; no source describes it.
DROPPED = 0.15
WRONG = 0.04
JUNK_RATE = 0.15


def pick(rng: random.Random, options: Weighted) -> str:
    """Sample one of the weighted options."""
    return rng.choices(tuple(options), weights=tuple(options.values()))[0]


def target_caption(scene: Scene, rng: random.Random) -> str:
    """Return a caption in the target style (like COCO): lower-case, plain, 8 to 16 words."""
    omitted = _omission(scene, rng)
    verb = pick(rng, TARGET_VERBS)
    opening = "" if verb else pick(rng, TARGET_OPENINGS)
    # Annotators mostly start with the most salient object.
    subject, where = _statement(scene, rng, omitted, reverse=rng.random() < 0.15)
    behind = _behind(scene, rng, omitted, TARGET_BACKGROUNDS)
    return _join(opening, subject, verb if where else "", where, behind)


def ood_caption(scene: Scene, rng: random.Random) -> str:
    """Return a caption in the out-of-domain style (like Flickr30k): longer, other phrasing."""
    omitted = _omission(scene, rng)
    if omitted == "place":  # `OOD_FRAMES` need a place
        omitted = "background"
    subject, where = _statement(scene, rng, omitted, reverse=rng.random() < 0.5)
    behind = _behind(scene, rng, omitted, OOD_BACKGROUNDS)
    sentence = _join(pick(rng, OOD_FRAMES).format(subject=subject, where=where), behind)
    return sentence[0].upper() + sentence[1:] + "."


def captions(
    scene: Scene, style: Callable[[Scene, random.Random], str], rng: random.Random, count: int = 5
) -> list[str]:
    """Return `count` different captions of a scene in one style."""
    written: list[str] = []
    while len(written) < count:
        text = style(scene, rng)
        if text not in written:
            written.append(text)
    return written


def alt_text(scene: Scene, rng: random.Random) -> str:
    """Return an alt-text: fragments in random order, some missing, a few wrong, some junk."""
    fragments = [_object_fragment(scene, index, rng) for index in range(len(scene.objects))]
    fragments += [_relation_fragment(scene, pair, rng) for pair in scene.relations()]
    fragments.append(_background_fragment(scene, rng))
    if rng.random() < JUNK_RATE:
        fragments.append(rng.choice(JUNK).format(number=rng.randrange(10_000)))
    fragments = [fragment for fragment in fragments if fragment]
    rng.shuffle(fragments)
    return rng.choice((", ", ", ", " | ", " ")).join(fragments)


def article(phrase: str) -> str:
    """Return a phrase with its indefinite article."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _omission(scene: Scene, rng: random.Random) -> str:
    """Sample the fact that this annotator omits."""
    options = {"background": 0.45, "texture": 0.15, "nothing": 0.1}
    for index in range(len(scene.objects)):
        options[f"size {index}"] = 0.25 / len(scene.objects)
    if len(scene.objects) == 1:
        options["place"] = 0.05
    return pick(rng, options)


def _noun(scene: Scene, index: int, rng: random.Random, omitted: str) -> str:
    item = scene.objects[index]
    if omitted == f"size {index}":
        return article(f"{item.colour} {item.shape}")
    return article(f"{pick(rng, SIZE_WORDS[item.size])} {item.colour} {item.shape}")


def _statement(scene: Scene, rng: random.Random, omitted: str, reverse: bool) -> tuple[str, str]:
    """Return the subject of a sentence and its place."""
    if len(scene.objects) == 1:
        where = "" if omitted == "place" else pick(rng, PLACE_PHRASES[scene.place(0)])
        return _noun(scene, 0, rng, omitted), where
    first, second, relation = scene.relations()[0]
    if reverse:
        first, second, relation = second, first, INVERSE[relation]
    where = f"{pick(rng, RELATION_PHRASES[relation])} {_noun(scene, second, rng, omitted)}"
    if len(scene.objects) == 3:
        (third,) = {0, 1, 2} - {first, second}
        where += f" and {_third(scene, third, (first, second), rng, omitted)}"
    return _noun(scene, first, rng, omitted), where


def _third(
    scene: Scene, third: int, others: tuple[int, int], rng: random.Random, omitted: str
) -> str:
    """Describe the third object by its relation to the last mentioned object that has one."""
    for other in reversed(others):
        relation = scene.relation(third, other)
        if relation is not None:
            anchor = scene.objects[other]
            phrase = pick(rng, RELATION_PHRASES[relation])
            noun = _noun(scene, third, rng, omitted)
            return f"{noun} {phrase} the {anchor.colour} {anchor.shape}"
    raise AssertionError("the third object has no relation")


def _behind(scene: Scene, rng: random.Random, omitted: str, words: Weighted) -> str:
    if omitted == "background":
        return ""
    background = scene.background
    kind = (
        background.colour if omitted == "texture" else f"{background.texture} {background.colour}"
    )
    return f"{pick(rng, words)} {article(kind)} background"


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _noisy(value: str, others: tuple[str, ...], rng: random.Random) -> str:
    """Return a fact as on the web: mostly right, sometimes missing (''), rarely wrong."""
    chance = rng.random()
    if chance < DROPPED:
        return ""
    return rng.choice(others) if chance < DROPPED + WRONG else value


def _object_fragment(scene: Scene, index: int, rng: random.Random) -> str:
    item = scene.objects[index]
    size = _noisy(item.size, SIZES, rng)
    colour = _noisy(item.colour, COLOURS, rng)
    shape = item.shape if rng.random() > WRONG else rng.choice(SHAPES)
    if size:
        size = pick(rng, SIZE_WORDS[size])
    place = _noisy(scene.place(index), (scene.place(index),), rng)
    # Never the order of the captions: size, colour, shape.
    orders = (
        (colour, shape, size, place),
        (shape, colour, place, size),
        (place, shape, size, colour),
    )
    return _join(*rng.choice(orders))


def _relation_fragment(scene: Scene, pair: tuple[int, int, str], rng: random.Random) -> str:
    first, second, relation = pair
    if rng.random() < 0.5:
        first, second, relation = second, first, INVERSE[relation]
    name = _noisy(relation, RELATIONS, rng)
    if not name:
        return ""
    word = {"above": "over", "below": "under"}.get(name, name) if rng.random() < 0.2 else name
    a, b = scene.objects[first], scene.objects[second]
    if a.shape == b.shape:  # "ring left ring" has no meaning
        return f"{a.colour} {word} {b.colour} {b.shape}"
    return f"{a.shape} {word} {b.shape}"


def _background_fragment(scene: Scene, rng: random.Random) -> str:
    colour = _noisy(scene.background.colour, BACKGROUND_COLOURS, rng)
    texture = _noisy(scene.background.texture, TEXTURES, rng)
    if not colour and not texture:
        return ""
    noun = rng.choice(("background", "bg"))
    return _join(*rng.choice(((colour, noun, texture), (noun, texture, colour))))
