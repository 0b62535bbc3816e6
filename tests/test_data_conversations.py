"""LLaVA's conversations are read as they are published; a wrong entry is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gapinit.data.conversations import Conversation, load_llava
from gapinit.data.locate import find_image
from gapinit.errors import GapinitError

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
    return load_llava(root / "llava.json", root)


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


def said(number: int, change: Callable[[list[Any]], object]) -> Callable[[list[Any]], object]:
    return lambda content: change(content[number]["conversations"])


DEFECTS: dict[str, tuple[Callable[[list[Any]], object], str]] = {
    "no object": (lambda c: c.append("x"), "[2]: expected an object, found 'x'"),
    "id missing": (lambda c: c[0].pop("id"), "[0]: the key 'id' is missing"),
    "id type": (lambda c: c[0].update(id=True), "[0]: 'id': expected a string, found true"),
    "id huge": (lambda c: c[0].update(id=2**70), "[0]: 'id': expected a number of at most 64"),
    "image missing": (lambda c: c[0].pop("image"), "[0]: the key 'image' is missing"),
    "image empty": (lambda c: c[0].update(image=""), "[0]: 'image': expected a file name"),
    "no image": (lambda c: c[0].update(image="a.jpg"), "[0]: names the image 'a.jpg', which is"),
    "path": (lambda c: c[0].update(image="../a.jpg"), "[0]: the file name '../a.jpg' leaves"),
    "no turns": (said(0, lambda t: t.clear()), "[0]: 'conversations': the conversation is empty"),
    "no list": (lambda c: c[0].update(conversations={}), "[0]: 'conversations': expected a list"),
    "turn": (said(0, lambda t: t.__setitem__(1, 5)), "[0].conversations[1]: expected an object"),
    "order": (
        said(0, lambda t: t.reverse()),
        "[0].conversations[0]: 'from': expected 'human' in this turn, found 'gpt'",
    ),
    "left out": (
        said(0, lambda t: t.pop(2)),
        "[0].conversations[2]: 'from': expected 'human' in this turn, found 'gpt'",
    ),
    "no answer": (
        said(0, lambda t: t.pop()),
        "[0].conversations[2]: the conversation ends without an answer",
    ),
    "empty": (
        said(0, lambda t: t[0].update(value=" <image>\n")),
        "[0].conversations[0]: 'value': the text is empty",
    ),
    "value": (said(0, lambda t: t[3].pop("value")), "[0].conversations[3]: the key 'value' is"),
    "again": (lambda c: c.append(c[0]), "[2]: the same image and conversation as [0]"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_named_once(root: Path, name: str) -> None:
    change, expected = DEFECTS[name]
    start = re.escape(f"{root / 'llava.json'}: {expected}")
    with pytest.raises(GapinitError, match=rf"^{start}[^\n]*$"):
        load(root, change)


@pytest.mark.parametrize("text", ['{"a": 1}', "[" * 100_000, '[{"id": "', "null"])
def test_files_that_hold_no_list_are_named(root: Path, text: str) -> None:
    (root / "llava.json").write_text(text)
    with pytest.raises(GapinitError, match=r"llava\.json: (expected a list|not )"):
        load_llava(root / "llava.json", root)


def test_half_a_character_is_named(root: Path) -> None:
    content = llava()
    content[0]["conversations"][1]["value"] = "a \ud800"
    (root / "llava.json").write_text(json.dumps(content))
    with pytest.raises(GapinitError, match=r"\[0\]\.conversations\[1\].*half of a character pair"):
        load_llava(root / "llava.json", root)
