"""What a `scenes` dataset file (`config/datasets/scenes*.yaml`) may say."""

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
"""The kind of a layout (None: for pretraining), its splits, and splits that it may have too."""


class SplitSizes(Settings):
    """Number of images of each split (the names of Karpathy's split)."""

    train: int = Field(default=0, ge=0, le=MAX_IMAGES)
    restval: int = Field(default=0, ge=0, le=MAX_IMAGES)
    val: int = Field(default=0, ge=0, le=MAX_IMAGES)
    test: int = Field(default=0, ge=0, le=MAX_IMAGES)

    def by_split(self) -> dict[str, int]:
        """Return the sizes by split name, splits without images left out."""
        return {split: size for split, size in self if size}


class ScenesSettings(Settings):
    """One generated dataset: how many images, how they look, in which layout they are written.

    The layout decides the texts too: `coco` has captions in the target style, `flickr30k` in the
    out-of-domain style, `pretraining` alt-texts and a text corpus, `vqa` questions about what is
    seen, `okvqa` questions that need a fact which no image shows, `pope` questions after objects
    that are or are not there, `llava` conversations.
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
    """Of `vqa` and `okvqa`; the turns of a conversation; the objects asked after in `pope`."""

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
        """Return the kind of the dataset's samples; None: pretraining data."""
        return LAYOUTS[self.layout][0]

    def as_folder(self) -> FolderSettings:
        """Return how the written dataset is read: as any folder of its format."""
        return FolderSettings(
            name=self.name,
            seed=self.seed,
            format=self.kind() or "captions",
            # Beside Karpathy's split lie the captions files of COCO.
            annotations=Path("dataset_coco.json") if self.layout == "coco" else None,
            answers="raw_answer" if self.layout == "okvqa" else "answer",
            splits=["val", "test"] if self.layout == "okvqa" else None,
        )
