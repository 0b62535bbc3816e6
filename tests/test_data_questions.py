"""VQAv2, OK-VQA and POPE are read as they are published; a wrong entry is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gapinit.data.defects import Defects
from gapinit.data.locate import (
    find_images_by_id,
    find_pope_file,
    find_question_files,
    image_number,
)
from gapinit.data.questions import Question, load_pope, load_vqa
from gapinit.errors import GapinitError

from .plain_json import write_json

Edit = Callable[[dict[str, Any]], object]


def vqa_contents(raw: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return questions and annotations as in the published files, three questions each."""
    ids = [(9, 9000), (9, 9001), (25, 25000)]
    questions = [
        {"image_id": image_id, "question": f" What is\n in {n}? ", "question_id": n}
        for image_id, n in ids
    ]
    annotations = [
        {
            "question_type": "what is",
            **({} if raw else {"multiple_choice_answer": "noise"}),
            "answers": [
                {
                    "answer": f"noise {n}",
                    **({"raw_answer": f"noises {n}"} if raw else {}),
                    "answer_confidence": "maybe",
                    "answer_id": n,
                }
                for n in range(1, 11)
            ],
            "image_id": image_id,
            "answer_type": "other",
            "question_id": number,
        }
        for image_id, number in ids
    ]
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    kinds = {"question_types": {"one": "Vehicles and Transportation"}} if raw else {}
    return (
        {**head, "task_type": "Open-Ended", "questions": questions},
        {**head, **kinds, "annotations": annotations},
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("val2014/COCO_val2014_000000000009.jpg", "train2017/000000000025.jpg"):
        (folder / name).parent.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / name)
    return folder


def load(root: Path, raw: bool = False, **changes: Edit) -> list[Question]:
    questions, annotations = vqa_contents(raw)
    for name, content in (("questions", questions), ("annotations", annotations)):
        if name in changes:
            changes[name](content)
        write_json(root / f"{name}.json", content)
    key = "raw_answer" if raw else "answer"
    files = root / "questions.json", root / "annotations.json"
    with Defects() as defects:
        return load_vqa(*files, root, "val", defects, answer_key=key)


def test_vqav2(root: Path) -> None:
    first, second, third = load(root)
    assert first == Question(
        question_id=9000,
        image_id=9,
        path=root / "val2014" / "COCO_val2014_000000000009.jpg",
        text="What is in 9000?",
        answers=tuple(f"noise {n}" for n in range(1, 11)),
        question_type="what is",
        answer_type="other",
        category="",
        split="val",
    )
    assert (second.question_id, second.path) == (9001, first.path)
    assert third.path == root / "train2017" / "000000000025.jpg"


def test_okvqa_has_stems_and_what_people_said(root: Path) -> None:
    assert load(root, raw=True)[0].answers[0] == "noises 1"
    files = root / "questions.json", root / "annotations.json"
    assert load_vqa(*files, root, "val", Defects())[0].answers[0] == "noise 1"


def test_entries_need_not_be_in_the_same_order(root: Path) -> None:
    loaded = load(root, annotations=lambda content: content["annotations"].reverse())
    assert [item.question_id for item in loaded] == [25000, 9001, 9000]
    assert [item.image_id for item in loaded] == [25, 9, 9]


def test_a_missing_image_is_told_once(root: Path) -> None:
    (root / "val2014" / "COCO_val2014_000000000009.jpg").unlink()
    with pytest.raises(GapinitError, match=r"^\S+questions.json: questions\[0\]: names the image"):
        load(root)


def test_the_folder_of_the_split_goes_first(tmp_path: Path) -> None:
    for name in ("train2014/COCO_train2014_", "val2014/COCO_val2014_", "images/train2017/"):
        path = tmp_path / f"{name}000000000009.jpg"
        path.parent.mkdir(parents=True)
        path.touch()
    assert find_images_by_id(tmp_path, "train")[9].parent.name == "train2014"
    assert find_images_by_id(tmp_path, "val")[9].parent.name == "val2014"
    assert find_images_by_id(tmp_path, "test")[9].parent.name == "val2014"
    assert set(find_images_by_id(tmp_path / "images", "val")) == {9}
    assert find_images_by_id(tmp_path / "nowhere", "val") == {}


POPE = [
    {
        "question_id": number,
        "image": "COCO_val2014_000000000009.jpg",
        "text": f"Is there a cat {number} in the image?",
        "label": ("yes", "no")[number % 2],
    }
    for number in (1, 2)
]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_pope(root: Path, end: str, mark: str) -> None:
    path = root / "coco_pope_popular.json"
    path.write_bytes((mark + "".join(json.dumps(entry) + end for entry in POPE)).encode())
    first, second = load_pope(path, root, "popular", Defects())
    assert first == Question(
        question_id=1,
        image_id=9,
        path=root / "val2014" / "COCO_val2014_000000000009.jpg",
        text="Is there a cat 1 in the image?",
        answers=("no",),
        question_type="",
        answer_type="yes/no",
        category="popular",
        split="test",
    )
    assert second.answers == ("yes",)


def test_image_numbers() -> None:
    assert image_number("COCO_val2014_000000310196.jpg") == 310196
    assert image_number("a/b/1000092795.jpg") == 1000092795
    named = {image_number(name) for name in ("cat.jpg", "dog.jpg", "9" * 30 + ".jpg", "\udc80.jpg")}
    assert len(named) == 4 and all(2**62 <= number < 2**63 for number in named)
    assert image_number("cat.jpg") == image_number("cat.jpg")


@pytest.mark.parametrize("place", ["", "annotations", "vqa"])
@pytest.mark.parametrize("version", ["", "v2_"])
def test_official_question_files_are_found(tmp_path: Path, place: str, version: str) -> None:
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    assert find_question_files(tmp_path, "val") is None
    questions = folder / f"{version}OpenEnded_mscoco_val2014_questions.json"
    annotations = folder / f"{version}mscoco_val2014_annotations.json"
    questions.touch()
    with pytest.raises(GapinitError, match=f"{annotations.name}: no such file, but {version}"):
        find_question_files(tmp_path, "val")
    annotations.touch()
    assert find_question_files(tmp_path, "val") == (questions, annotations)
    assert find_question_files(tmp_path, "train") is None


def test_two_datasets_of_questions_in_one_folder_are_told(tmp_path: Path) -> None:
    for version in ("", "v2_"):
        (tmp_path / f"{version}OpenEnded_mscoco_val2014_questions.json").touch()
        (tmp_path / f"{version}mscoco_val2014_annotations.json").touch()
    with pytest.raises(GapinitError, match="put each dataset into its own folder"):
        find_question_files(tmp_path, "val")


def test_pope_files_are_found_by_category(tmp_path: Path) -> None:
    assert find_pope_file(tmp_path, "random") is None
    (tmp_path / "pope").mkdir()
    for category, name in (("random", "coco_pope_random.json"),
                           ("adversarial", "pope/coco_pope_adversarial.jsonl")):  # fmt: skip
        (tmp_path / name).touch()
        assert find_pope_file(tmp_path, category) == tmp_path / name
    (tmp_path / "gqa_pope_random.json").touch()
    with pytest.raises(GapinitError, match="holds coco_pope_random.json and gqa_pope_random.json"):
        find_pope_file(tmp_path, "random")
