"""What a `scenes` dataset file (`config/datasets/scenes*.yaml`) may say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from gapinit.config.yaml_files import Settings

if TYPE_CHECKING:
    from gapinit.data.folder import FolderSettings
    from gapinit.data.manifest import Kind

Layout = Literal["coco", "flickr30k", "pretraining", "vqa", "okvqa", "pope", "llava"]
MAX_IMAGES = 200_000
SPLITS: dict[Layout, tuple[set[str], set[str]]] = {
    "coco": ({"train", "val", "test"}, {"restval"}),
    "flickr30k": ({"train", "val", "test"}, set()),
    "pretraining": ({"train"}, set()),
    "vqa": ({"train", "val"}, set()),
    "okvqa": ({"val"}, set()),
    "pope": ({"test"}, set()),
    "llava": ({"train"}, set()),
}
"""The splits that a layout must have, and those that it may have."""


class SplitSizes(Settings):
    """Number of images of each split (the names of Karpathy's split)."""

    train: int = Field(default=0, ge=0, le=MAX_IMAGES)
    restval: int = Field(default=0, ge=0, le=MAX_IMAGES)
    val: int = Field(default=0, ge=0, le=MAX_IMAGES)
    test: int = Field(default=0, ge=0, le=MAX_IMAGES)

    def by_split(self) -> dict[str, int]:
        """Return the sizes by split name, splits without images left out."""
        sizes = {"train": self.train, "restval": self.restval, "val": self.val, "test": self.test}
        return {split: size for split, size in sizes.items() if size}


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
        needed, allowed = SPLITS[layout]
        given = set(images.by_split())
        for split in sorted(needed - given):
            raise ValueError(f"the layout '{layout}' needs at least 1 image in '{split}'")
        for split in sorted(given - needed - allowed):
            raise ValueError(f"the layout '{layout}' has no split '{split}'")
        return images

    def with_seed(self, seed: int) -> Self:
        """Return the same settings under another seed."""
        return self.model_copy(update={"seed": seed})

    def kind(self) -> Kind | None:
        """Return what the dataset holds; None: pretraining data."""
        kinds: dict[Layout, Kind] = {
            "coco": "captions",
            "flickr30k": "captions",
            "vqa": "vqa",
            "okvqa": "vqa",
            "pope": "pope",
            "llava": "conversations",
        }
        return kinds.get(self.layout)

    def as_folder(self) -> FolderSettings:
        """Return how the written dataset is read: as any folder of its format."""
        from gapinit.data.folder import FolderSettings

        annotations = {
            "coco": Path("dataset_coco.json"),
            "flickr30k": Path("dataset_flickr30k.json"),
            "llava": Path("llava_instruct_150k.json"),
        }
        return FolderSettings(
            name=self.name,
            seed=self.seed,
            format=self.kind() or "captions",
            annotations=annotations.get(self.layout),
            answers="raw_answer" if self.layout == "okvqa" else "answer",
            splits=["val", "test"] if self.layout == "okvqa" else None,
        )
