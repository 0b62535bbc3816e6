"""The scenes: objects with shape, colour, size and place, and a background.

A scene is a list of facts. The renderer draws them, captions describe them, and the answers to
questions (colour, shape, count, relation) follow from them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring", "diamond", "bar")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
BACKGROUND_COLOURS = ("white", "gray", "black", "beige")
TEXTURES = ("plain", "striped", "dotted", "checkered")
RELATIONS = ("left", "right", "above", "below")
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
GRID = 3
# ASSUME: mostly two objects, so that most captions state a relation.
COUNT_WEIGHTS = {1: 0.25, 2: 0.55, 3: 0.20}

Cell = tuple[int, int]


@dataclass(frozen=True)
class SceneObject:
    """One object: its attributes and its cell (row, column) of the 3 x 3 grid."""

    shape: str
    colour: str
    size: str
    row: int
    column: int


@dataclass(frozen=True)
class Background:
    """The background of a scene."""

    colour: str
    texture: str


@dataclass(frozen=True)
class Scene:
    """Objects, most salient first (large before small, then reading order), and a background."""

    objects: tuple[SceneObject, ...]
    background: Background

    def relation(self, first: int, second: int) -> str | None:
        """Return the relation of object `first` to object `second`, or None on a diagonal."""
        a, b = self.objects[first], self.objects[second]
        return cell_relation((a.row, a.column), (b.row, b.column))

    def relations(self) -> list[tuple[int, int, str]]:
        """Return (i, j, relation of i to j) for each pair i < j whose relation is unambiguous."""
        pairs = combinations(range(len(self.objects)), 2)
        return [(i, j, name) for i, j in pairs if (name := self.relation(i, j)) is not None]

    def place(self, index: int) -> str:
        """Return the name of an object's cell: 'top left', 'top', ..., 'center', ..."""
        item = self.objects[index]
        vertical = ("top", "", "bottom")[item.row]
        horizontal = ("left", "", "right")[item.column]
        return f"{vertical} {horizontal}".strip() or "center"

    def count(self, *, shape: str | None = None, colour: str | None = None) -> int:
        """Return the number of objects of the given shape and colour (None: any)."""
        return sum(
            (shape is None or item.shape == shape) and (colour is None or item.colour == colour)
            for item in self.objects
        )


def cell_relation(first: Cell, second: Cell) -> str | None:
    """Return the relation of one grid cell to another along the longer axis; None if equal."""
    down, across = first[0] - second[0], first[1] - second[1]
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    if abs(down) > abs(across):
        return "above" if down < 0 else "below"
    return None


def _arrangements(count: int) -> tuple[tuple[Cell, ...], ...]:
    """Return the sets of `count` cells that do not touch, with relations that connect them all."""
    fitting = []
    cells = [(row, column) for row in range(GRID) for column in range(GRID)]
    for chosen in combinations(cells, count):
        pairs = list(combinations(chosen, 2))
        apart = all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 2 for a, b in pairs)
        related = sum(cell_relation(a, b) is not None for a, b in pairs)
        if apart and related >= count - 1:
            fitting.append(chosen)
    return tuple(fitting)


ARRANGEMENTS = {count: _arrangements(count) for count in COUNT_WEIGHTS}


def sample_scene(rng: random.Random) -> Scene:
    """Sample a scene in which no two objects share both shape and colour."""
    count = rng.choices(tuple(COUNT_WEIGHTS), weights=tuple(COUNT_WEIGHTS.values()))[0]
    cells = list(rng.choice(ARRANGEMENTS[count]))
    rng.shuffle(cells)
    kinds: list[tuple[str, str]] = []
    while len(kinds) < count:
        kind = (rng.choice(SHAPES), rng.choice(COLOURS))
        if kind not in kinds:
            kinds.append(kind)
    objects = [
        SceneObject(shape, colour, rng.choice(SIZES), row, column)
        for (shape, colour), (row, column) in zip(kinds, cells, strict=True)
    ]
    objects.sort(key=lambda item: (item.size != "large", item.row, item.column))
    background = Background(rng.choice(BACKGROUND_COLOURS), rng.choice(TEXTURES))
    return Scene(tuple(objects), background)
