"""What a `scenes` dataset file (`config/datasets/scenes*.yaml`) may say."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from gapinit.settings import Settings

Layout = Literal["coco", "flickr30k", "pretraining"]
MAX_IMAGES = 200_000


class SplitSizes(Settings):
    """Number of images of each split (the names of Karpathy's split)."""

    train: int = Field(ge=1, le=MAX_IMAGES)
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
    out-of-domain style, `pretraining` alt-texts and a text corpus.
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

    @field_validator("images", mode="after")
    @classmethod
    def _splits_fit_the_layout(cls, images: SplitSizes, info: ValidationInfo) -> SplitSizes:
        layout = info.data.get("layout")
        splits = images.by_split()
        if layout == "pretraining" and set(splits) != {"train"}:
            raise ValueError("the layout 'pretraining' has only the split 'train'")
        if layout in ("coco", "flickr30k") and not {"val", "test"} <= set(splits):
            raise ValueError(f"the layout '{layout}' needs at least 1 image in 'val' and in 'test'")
        if layout == "flickr30k" and "restval" in splits:
            raise ValueError("the layout 'flickr30k' has no split 'restval'")
        return images

    def with_seed(self, seed: int) -> Self:
        """Return the same settings under another seed."""
        return self.model_copy(update={"seed": seed})
