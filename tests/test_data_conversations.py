"""LLaVA's conversations are read as they are published; a wrong entry is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gapinit.data.conversations import Conversation, load_llava
from gapinit.data.defects import Defects
from gapinit.data.locate import find_image

from .plain_json import write_json

NAME = "000000033471"


def llava() -> list[dict[str, Any]]:
    """Return two conversations about one image, under one id, as LLaVA-Instruct-150K has them."""
    said = [
        {"from": "human", "value": "<image>\nWhat are the colors\nof the bus?"},
        {"from": "gpt", "value": "White and red.\nThe roof is grey."},
        {"from": "human", "value": "Is it moving?"},
        {"from": "gpt", "value": "It is not."},
    ]
    detail = [
        {"from": "human", "value": "Write a detailed description.\n<image>"},
        {"from": "gpt", "value": "The image shows a bus."},
    ]
    return [
        {"id": NAME, "image": f"{NAME}.jpg", "conversations": said},
        {"id": NAME, "image": f"{NAME}.jpg", "conversations": detail},
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "train2017").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(folder / "train2017" / f"{NAME}.jpg")
    return folder


def load(root: Path, change: Callable[[list[Any]], object] | None = None) -> list[Conversation]:
    content = llava()
    if change is not None:
        change(content)
    write_json(root / "llava.json", content)
    with Defects() as defects:
        return load_llava(root / "llava.json", root, defects)


def test_conversations(root: Path) -> None:
    first, second = load(root)
    assert first == Conversation(
        conversation_id=NAME,
        path=root / "train2017" / f"{NAME}.jpg",
        image_id=33471,
        turns=(
            ("What are the colors\nof the bus?", "White and red.\nThe roof is grey."),
            ("Is it moving?", "It is not."),
        ),
        split="train",
    )
    assert second.turns == (("Write a detailed description.", "The image shows a bus."),)
    assert second.conversation_id == first.conversation_id


def test_a_number_is_an_id_too(root: Path) -> None:
    assert load(root, lambda c: c[0].update(id=7))[0].conversation_id == "7"


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("folder", ["", "images"])
def test_images_of_2017_are_found_under_their_names_of_2014(
    tmp_path: Path, split: str, folder: str
) -> None:
    path = tmp_path / folder / f"{split}2014" / f"COCO_{split}2014_{NAME}.jpg"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(path)
    assert [item.path for item in load(tmp_path)] == [path, path]
    assert find_image(tmp_path, [f"{folder}/{split}2014"], f"{NAME}.png") is None
