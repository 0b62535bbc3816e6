"""VQAv2, OK-VQA and POPE are read as they are published; a wrong entry is named."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gapinit.data.defects import Defects
from gapinit.data.locate import (
    find_images_by_id,
    find_pope_files,
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
    return load_vqa(*files, root, "val", answer_key=key)


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
    assert load_vqa(*files, root, "val")[0].answers[0] == "noise 1"


def test_entries_need_not_be_in_the_same_order(root: Path) -> None:
    loaded = load(root, annotations=lambda content: content["annotations"].reverse())
    assert [item.question_id for item in loaded] == [25000, 9001, 9000]
    assert [item.image_id for item in loaded] == [25, 9, 9]


def question(number: int, **changes: Any) -> dict[str, Edit]:
    return {"questions": lambda content: content["questions"][number].update(changes)}


def annotation(number: int, **changes: Any) -> dict[str, Edit]:
    return {"annotations": lambda content: content["annotations"][number].update(changes)}


DEFECTS: dict[str, tuple[dict[str, Edit], list[str]]] = {
    "id": (question(1, question_id="x"), ["questions.json: questions[1]: 'question_id': expected"]),
    "image id": (question(1, image_id=None), ["questions[1]: 'image_id': expected a whole"]),
    "text": (question(1, question=""), ["questions[1]: 'question': the question is empty"]),
    "image": (
        question(2, image_id=77),
        [
            "questions[2]: names the image COCO_{train,val}2014_000000000077.jpg or 000000000077",
            "annotations[2]: 'image_id': 25, but its question, questions[2] of questions.json, has",
        ],
    ),
    "twice": (question(1, question_id=9000), ["questions[1]: duplicate question id 9000"]),
    "answer twice": (annotation(1, question_id=9000), ["annotations[1]: duplicate question id"]),
    "no object": (
        {"questions": lambda content: content["questions"].__setitem__(1, 5)},
        ["questions[1]: expected an object, found 5"],
    ),
    "no partner": (
        annotation(1, question_id=5),
        [
            "questions[1]: question 9001 has no annotation in annotations.json",
            "annotations[1]: question 5 has no question in questions.json",
        ],
    ),
    "types": (
        annotation(1, question_type=None, answer_type=3, multiple_choice_answer=[]),
        [
            "annotations[1]: 'question_type': expected a string, found null",
            "annotations[1]: 'answer_type': expected a string, found 3",
            "annotations[1]: 'multiple_choice_answer': expected a string, found a list of 0",
        ],
    ),
    "answers": (
        annotation(1, answers=[{"answer": " "}, {}, "x"]),
        [
            "annotations[1]: 'answers': expected 10 answers, found 3",
            "annotations[1].answers[0]: 'answer': the answer is empty",
            "annotations[1].answers[1]: the key 'answer' is missing",
            "annotations[1].answers[2]: expected an object, found 'x'",
        ],
    ),
    "no list": (annotation(1, answers="x"), ["annotations[1]: 'answers': expected a list"]),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_defects_are_named_together_and_each_once(root: Path, name: str) -> None:
    changes, expected = DEFECTS[name]
    with pytest.raises(GapinitError) as caught:
        load(root, **changes)
    message = str(caught.value)
    assert message.count("\n") == (len(expected) if len(expected) > 1 else 0), message
    for text in expected:
        assert text in message


def test_a_missing_image_is_told_once(root: Path) -> None:
    (root / "val2014" / "COCO_val2014_000000000009.jpg").unlink()
    with pytest.raises(GapinitError, match=r"^\S+questions.json: questions\[0\]: names the image"):
        load(root)


@pytest.mark.parametrize("key", ["questions", "annotations"])
def test_a_file_without_its_list_is_named(root: Path, key: str) -> None:
    with pytest.raises(GapinitError, match=rf"{key}\.json: expected the key '{key}'"):
        load(root, **{key: lambda content: content.pop(key)})


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
    first, second = load_pope(path, root, "popular")
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "Yes"}, "line 2: 'label': expected yes or no, found 'Yes' (question_id 2)"),
        ({"label": True}, "line 2: 'label': expected a string, found true"),
        ({"question_id": 1}, "line 2: duplicate question id 1, already used by line 1"),
        ({"question_id": "1"}, "line 2: 'question_id': expected a whole number"),
        ({"text": "\t"}, "line 2: 'text': the question is empty"),
        ({"image": ""}, "line 2: 'image': expected a file name, found ''"),
        ({"image": "no.jpg"}, "line 2: names the image 'no.jpg', which is not in"),
        ({"image": "/etc/passwd"}, "line 2: the file name '/etc/passwd' leaves the image root"),
    ],
)
def test_defects_of_pope_are_named(root: Path, changes: dict[str, Any], message: str) -> None:
    path = root / "pope.json"
    path.write_text("\n".join(json.dumps(entry) for entry in (POPE[0], {**POPE[1], **changes})))
    with pytest.raises(GapinitError, match=rf"^{re.escape(f'{path}: {message}')}[^\n]*$"):
        load_pope(path, root, "random")


def test_pope_files_that_cannot_be_read(root: Path) -> None:
    path = root / "pope.json"
    with pytest.raises(GapinitError, match=r"pope\.json: no such file"):
        load_pope(path, root, "random")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(GapinitError, match="not valid UTF-8"):
        load_pope(path, root, "random")
    path.write_text(json.dumps(POPE, indent=1))
    with pytest.raises(GapinitError, match="expected one JSON object a line, found a list"):
        load_pope(path, root, "random")


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
    assert find_question_files(tmp_path) == {}
    expected = {}
    for split in ("train", "val"):
        questions = folder / f"{version}OpenEnded_mscoco_{split}2014_questions.json"
        annotations = folder / f"{version}mscoco_{split}2014_annotations.json"
        questions.touch()
        with pytest.raises(GapinitError, match=f"{annotations.name}: no such file, but {version}"):
            find_question_files(tmp_path)
        annotations.touch()
        expected[split] = (questions, annotations)
        assert find_question_files(tmp_path) == expected


def test_two_datasets_of_questions_in_one_folder_are_told(tmp_path: Path) -> None:
    for version in ("", "v2_"):
        (tmp_path / f"{version}OpenEnded_mscoco_val2014_questions.json").touch()
        (tmp_path / f"{version}mscoco_val2014_annotations.json").touch()
    with pytest.raises(GapinitError, match="put each dataset into its own folder"):
        find_question_files(tmp_path)


def test_pope_files_are_found_by_category(tmp_path: Path) -> None:
    assert find_pope_files(tmp_path) == {}
    (tmp_path / "pope").mkdir()
    files = {
        "random": tmp_path / "coco_pope_random.json",
        "adversarial": tmp_path / "pope" / "coco_pope_adversarial.jsonl",
    }
    for path in files.values():
        path.touch()
    assert find_pope_files(tmp_path) == files
    (tmp_path / "gqa_pope_random.json").touch()
    with pytest.raises(GapinitError, match="holds coco_pope_random.json and gqa_pope_random.json"):
        find_pope_files(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths to every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, child in inner:
        found.append((*path, key))
        if isinstance(child, dict | list):
            found += places(child, (*path, key))
    return found


@given(data=st.data())
def test_any_value_anywhere_is_loaded_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    contents = {"q": vqa_contents()[0], "a": vqa_contents()[1], "p": copy.deepcopy(POPE)}
    name = data.draw(st.sampled_from(sorted(contents)))
    path = data.draw(st.sampled_from(places(contents[name])))
    holder: Any = contents[name]
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(JSON)
    root = tmp_path_factory.getbasetemp()
    for key in "qa":
        (root / f"{key}.json").write_text(json.dumps(contents[key]))
    (root / "p.json").write_text("\n".join(json.dumps(line) for line in contents["p"]))
    defects = Defects()
    try:
        load_vqa(root / "q.json", root / "a.json", root, "val", defects)
        load_pope(root / "p.json", root, "random", defects)
    except GapinitError as error:
        assert str(error).startswith(f"{root}")
    else:
        assert len(defects)  # no image is there
