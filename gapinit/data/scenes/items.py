"""The images of a `scenes` dataset before any text: which scene is which image of which split.

Every scene, picture and text has a random stream of its own, named after the dataset, its seed
and its place in it, so the files are the same byte for byte wherever and whenever they are made.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from gapinit.artifacts.artifacts import atomic_folder
from gapinit.data.scenes.render import render
from gapinit.data.scenes.settings import ScenesSettings
from gapinit.data.scenes.world import Scene, sample_scene
from gapinit.progress import track

JPEG_QUALITY = 95
MIXED_OUTDOOR_SHARE = 0.25  # ASSUME: a pretraining set is mostly like the target domain
COCO_IDS = range(1, 600_000)


@dataclass(frozen=True)
class Item:
    """One image of a dataset before it is drawn."""

    split: str
    number: int
    scene: Scene

    @property
    def release(self) -> str:
        """COCO's folder of 2014: as in Karpathy's split, all but `train` is cut from `val2014`."""
        return "train2014" if self.split == "train" else "val2014"


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


def draw_images(
    settings: ScenesSettings, folder: Path, path: str, ids: range = COCO_IDS
) -> list[tuple[Item, int, str]]:
    """Draw all images into a folder, which is replaced; return each with its id and its path.

    Ids are distinct and sparse, as in the real datasets. `path` is a pattern of an image's path
    below the folder: of its `id`, its COCO `release` and its `number` in its split.
    """
    items = sample_items(settings)
    numbers = stream(settings, "numbers").sample(ids, len(items))
    drawn = [
        (item, number, path.format(id=number, release=item.release, number=item.number))
        for item, number in zip(items, numbers, strict=True)
    ]
    with atomic_folder(folder) as temporary:
        for item, _, name in track(drawn, f"drawing {settings.name}"):
            (temporary / name).parent.mkdir(exist_ok=True)
            _draw(settings, item, temporary / name)
    return drawn


def draw_coco(settings: ScenesSettings, output: Path) -> list[tuple[Item, int, str]]:
    """Draw all images below `output`/images, under COCO's names of 2014."""
    return draw_images(settings, output / "images", "{release}/COCO_{release}_{id:012d}.jpg")


def _draw(settings: ScenesSettings, item: Item, path: Path) -> None:
    """Render an item's scene into a JPEG file."""
    rng = stream(settings, item.split, item.number, "picture")
    domain: str = settings.domain
    if domain == "mixed":
        domain = "outdoor" if rng.random() < MIXED_OUTDOOR_SHARE else "studio"
    picture = render(item.scene, domain, settings.image_size, rng)
    # No chroma subsampling: at 32 pixels it would smear the colours of small objects.
    picture.save(path, "JPEG", quality=JPEG_QUALITY, subsampling=0)
