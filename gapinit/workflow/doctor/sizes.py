"""Sizes of datasets: from `config/sizes.yaml`, a generator's settings, or files on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from gapinit.backbones.facts import PHOTO
from gapinit.backbones.prompts import Prompts, training_texts
from gapinit.config.yaml_files import Settings, read_settings
from gapinit.data.folder import read_folder
from gapinit.data.manifest import Manifest, read_manifest
from gapinit.data.scenes.settings import ScenesSettings
from gapinit.workflow.plan import Plan

Count = Annotated[int, Field(ge=0)]
CAPTIONS_PER_IMAGE = 5
"""Captions of each generated image, as in COCO."""
POPE_QUESTIONS = 6
"""Questions for each object in a generated POPE: one yes and one no in each of three files."""
TURN_TOKENS = 16
"""ASSUME: tokens of one turn of a generated conversation: a question with its answer."""
CAPTION_TOKENS = 12
QUESTION_TOKENS = 10


class Train(Settings):
    """A training split."""

    images: Count
    texts: Count
    tokens: Count
    learned: Count


class Test(Settings):
    """An evaluation split."""

    images: Count
    samples: Count
    tokens: Count = 0


class Size(Settings):
    """A dataset's splits, and a typical image's width and height."""

    image: tuple[int, int]
    train: Train | None = None
    test: Test | None = None


class DownloadSize(Settings):
    """Sizes of a download that `config/downloads.yaml` does not give."""

    bytes: Count | None = None
    unpacked: Count | None = None


class Sizes(Settings):
    """The content of `config/sizes.yaml`."""

    datasets: dict[str, Size] = {}
    downloads: dict[str, DownloadSize] = {}


def read_sizes(folder: Path) -> Sizes:
    """Read `sizes.yaml` from the folder `config/`."""
    return read_settings(folder / "sizes.yaml", Sizes)


def dataset_size(plan: Plan, name: str, sizes: Sizes) -> Size | None:
    """Return the size of a dataset; None if it is unknown until the files are downloaded."""
    settings = plan.datasets[name]
    if isinstance(settings, ScenesSettings):
        return _generated(settings)
    if name in sizes.datasets:
        return sizes.datasets[name]
    made = Path(plan.config.results) / "1_data" / name / "manifest.json"
    if made.is_file():
        return _read(read_manifest(made))
    return None if plan.retrieved(name) else _read(read_folder(settings, *plan.local_paths(name)))


def _generated(settings: ScenesSettings) -> Size:
    """Return the size of a dataset that the workflow generates."""
    images, side = settings.images, (settings.image_size, settings.image_size)
    asked = settings.questions_per_image
    learned = images.train + images.restval
    if settings.layout in ("coco", "flickr30k"):
        texts = CAPTIONS_PER_IMAGE * learned
        train = Train(images=learned, texts=texts, tokens=CAPTION_TOKENS, learned=CAPTION_TOKENS)
        return Size(image=side, train=train, test=Test(images=images.test, samples=images.test))
    if settings.layout == "llava":
        tokens = TURN_TOKENS * asked
        train = Train(images=learned, texts=learned, tokens=tokens, learned=tokens // 2)
        return Size(image=side, train=train)
    seen = images.test if settings.layout == "pope" else images.val
    factor = POPE_QUESTIONS if settings.layout == "pope" else 1
    test = Test(images=seen, samples=seen * asked * factor, tokens=QUESTION_TOKENS)
    if settings.layout != "vqa":
        return Size(image=side, test=test)
    tokens = QUESTION_TOKENS + 2
    return Size(
        image=side,
        train=Train(images=learned, texts=learned * asked, tokens=tokens, learned=2),
        test=test,
    )


def _read(manifest: Manifest) -> Size:
    """Return the size of a dataset from its manifest."""
    plain = Prompts(caption="", question="{question}", chat="{question}", turn="{question}")
    samples = manifest.splits
    images = {name: len({sample.path for sample in samples[name]}) for name in samples}
    captions = manifest.kind == "captions"
    tokens = CAPTION_TOKENS if captions else QUESTION_TOKENS
    train = test = None
    if learned := samples.get("train"):
        texts = sum(len(training_texts(plain, manifest.kind, sample)) for sample in learned)
        train = Train(images=images["train"], texts=texts, tokens=tokens, learned=tokens)
    if scored := samples.get("test"):
        asked = 0 if captions else tokens
        test = Test(images=images["test"], samples=len(scored), tokens=asked)
    return Size(image=PHOTO, train=train, test=test)
