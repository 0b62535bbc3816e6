"""The settings of a `scenes` dataset (`config/datasets/scenes*.yaml`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from gapinit.config.yaml_files import Settings
from gapinit.data.folder import FolderSettings
from gapinit.data.manifest import Kind

Layout = Literal["coco", "flickr30k", "pretraining", "vqa", "okvqa", "pope", "llava"]
MAX_IMAGES = 200_000
LAYOUTS: dict[Layout, tuple[Kind | None, set[str], set[str]]] = {
    "coco": ("captions", {"train", "val", "test"}, {"restval"}),
    "flickr30k": ("captions", {"train", "val", "test"}, set()),
    "pretraining": (None, {"train"}, set()),
    "vqa": ("vqa", {"train", "val"}, set()),
    "okvqa": ("vqa", {"val"}, set()),
    "pope": ("pope", {"test"}, set()),
    "llava": ("conversations", {"train"}, set()),
}
"""By layout: the kind (None: pretraining), the required splits and the optional splits."""


class SplitSizes(Settings):
    """The number of images of each split (named as in Karpathy's split)."""

    train: int = Field(default=0, ge=0, le=MAX_IMAGES)
    restval: int = Field(default=0, ge=0, le=MAX_IMAGES)
    val: int = Field(default=0, ge=0, le=MAX_IMAGES)
    test: int = Field(default=0, ge=0, le=MAX_IMAGES)

    def by_split(self) -> dict[str, int]:
        """Return the sizes of the splits that have images."""
        return {split: size for split, size in self if size}


class ScenesSettings(Settings):
    """One generated dataset: its number of images, their look and their layout.

    The layout also decides the texts: `coco` has captions in the target style, `flickr30k` captions
    in the out-of-domain style, `pretraining` alt-texts and a text corpus, `vqa` questions about the
    image, `okvqa` questions that need a fact which no image shows, `pope` questions whether an
    object is present, `llava` conversations.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    generator: Literal["scenes"]
    layout: Layout
    domain: Literal["studio", "outdoor", "mixed"]
    seed: int = Field(ge=0)
    image_size: int = Field(default=32, ge=16, le=512)
    images: SplitSizes
    alt_texts_per_image: int = Field(default=2, ge=1, le=20)
    corpus_lines: int = Field(default=30_000, ge=1, le=10_000_000)
    questions_per_image: int = Field(default=3, ge=1, le=6)
    """In `vqa` and `okvqa`; in `llava` the turns; in `pope` the present objects per image."""

    @field_validator("images", mode="after")
    @classmethod
    def _splits_fit_the_layout(cls, images: SplitSizes, info: ValidationInfo) -> SplitSizes:
        layout = info.data.get("layout")
        if layout is None:
            return images
        _, needed, allowed = LAYOUTS[layout]
        given = set(images.by_split())
        for split in sorted(needed - given):
            raise ValueError(f"the layout '{layout}' needs at least 1 image in '{split}'")
        for split in sorted(given - needed - allowed):
            raise ValueError(f"the layout '{layout}' has no split '{split}'")
        return images

    def kind(self) -> Kind | None:
        """Return the kind of the dataset's samples; None for pretraining data."""
        return LAYOUTS[self.layout][0]

    def as_folder(self) -> FolderSettings:
        """Return the settings that read the written dataset as a folder."""
        return FolderSettings(
            name=self.name,
            seed=self.seed,
            format=self.kind() or "captions",
            # The folder also contains COCO's captions files.
            annotations=Path("dataset_coco.json") if self.layout == "coco" else None,
            answers="raw_answer" if self.layout == "okvqa" else "answer",
            splits=["val", "test"] if self.layout == "okvqa" else None,
        )
