"""The images of a `scenes` dataset: the scene, split and file of each.

Each split's scenes, each picture and each text have their own random stream, seeded with the
dataset's name, its seed and the place in the dataset, so that every run writes the same bytes.
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
MIXED_OUTDOOR_SHARE = 0.25  # ASSUME: a pretraining set is mostly from the target domain
COCO_IDS = range(1, 600_000)


@dataclass(frozen=True)
class Item:
    """One image of a dataset, not yet drawn."""

    split: str
    number: int
    scene: Scene

    @property
    def release(self) -> str:
        """COCO's folder of 2014; in Karpathy's split, all splits but `train` are from `val2014`."""
        return "train2014" if self.split == "train" else "val2014"


def stream(settings: ScenesSettings, *place: object) -> random.Random:
    """Return the random stream of one part of a dataset (`Random` hashes text by SHA-512)."""
    name = "/".join(str(part) for part in (settings.name, settings.seed, *place))
    return random.Random(name)


def sample_items(settings: ScenesSettings) -> list[Item]:
    """Sample the scenes of a dataset; no scene occurs in two splits."""
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
    """Draw all images into `folder`, replacing it; return each with its id and its path.

    Ids are distinct and sparse, as in the real datasets. `path` is the format string of an image's
    path in the folder, with the fields `id`, `release` (COCO's) and `number` (in its split).
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
            rng = stream(settings, item.split, item.number, "picture")
            domain: str = settings.domain
            if domain == "mixed":
                domain = "outdoor" if rng.random() < MIXED_OUTDOOR_SHARE else "studio"
            picture = render(item.scene, domain, settings.image_size, rng)
            # Chroma subsampling would blur the colours of small objects at 32 pixels.
            picture.save(temporary / name, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return drawn


def draw_coco(settings: ScenesSettings, output: Path) -> list[tuple[Item, int, str]]:
    """Draw all images into `output`/images, with COCO's file names of 2014."""
    return draw_images(settings, output / "images", "{release}/COCO_{release}_{id:012d}.jpg")
