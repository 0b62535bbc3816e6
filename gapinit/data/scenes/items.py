"""The images of a `scenes` dataset before any text: which scene is which image of which split.

Every scene, picture and text has a random stream of its own, named after the dataset, its seed
and its place in it, so the files are the same byte for byte wherever and whenever they are made.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gapinit.data.scenes.render import render
from gapinit.data.scenes.settings import ScenesSettings
from gapinit.data.scenes.world import Scene, sample_scene
from gapinit.progress import track

JPEG_QUALITY = 95
MIXED_OUTDOOR_SHARE = 0.25  # ASSUME: a pretraining set is mostly like the target domain


@dataclass(frozen=True)
class Item:
    """One image of a dataset before it is drawn."""

    split: str
    number: int
    scene: Scene


def stream(settings: ScenesSettings, *place: object) -> random.Random:
    """Return the random stream of one part of a dataset. A text seed is hashed by SHA-512."""
    name = "/".join(str(part) for part in (settings.name, settings.seed, *place))
    return random.Random(name)


def sample_items(settings: ScenesSettings) -> list[Item]:
    """Draw the scenes of a dataset; no scene occurs in two splits."""
    split_of: dict[Scene, str] = {}
    items = []
    for split, size in settings.images.by_split().items():
        rng = stream(settings, split, "scenes")
        for number in range(size):
            scene = sample_scene(rng)
            while split_of.get(scene, split) != split:
                scene = sample_scene(rng)
            split_of[scene] = split
            items.append(Item(split, number, scene))
    return items


def shown(items: list[Item], settings: ScenesSettings, progress: bool) -> Iterable[Item]:
    """Return the items, with a progress bar if wanted."""
    return track(items, f"drawing {settings.name}") if progress else items


def draw(settings: ScenesSettings, item: Item, path: Path) -> None:
    """Render an item's scene into a JPEG file."""
    rng = stream(settings, item.split, item.number, "picture")
    domain: str = settings.domain
    if domain == "mixed":
        domain = "outdoor" if rng.random() < MIXED_OUTDOOR_SHARE else "studio"
    picture = render(item.scene, domain, settings.image_size, rng)
    # No chroma subsampling: at 32 pixels it would smear the colours of small objects.
    picture.save(path, "JPEG", quality=JPEG_QUALITY, subsampling=0)


def numbers(settings: ScenesSettings, count: int, low: int, high: int) -> Iterator[int]:
    """Draw distinct image numbers, sparse as in the real datasets."""
    return iter(stream(settings, "numbers").sample(range(low, high), count))
