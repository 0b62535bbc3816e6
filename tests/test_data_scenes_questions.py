"""The questions of `scenes`: right answers, people who disagree, and the benchmarks' own rules."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gapinit.artifacts.artifacts import read_json
from gapinit.config.yaml_files import read_settings
from gapinit.data.dataset import prepare_dataset
from gapinit.data.manifest import read_manifest
from gapinit.data.scenes.corpus import MATERIALS, NUMBERS, TASTES
from gapinit.data.scenes.items import sample_items
from gapinit.data.scenes.questions import knowledge_questions, visual_questions
from gapinit.data.scenes.settings import ScenesSettings
from gapinit.data.scenes.world import Scene, sample_scene

DATASETS = Path(__file__).parents[1] / "config" / "datasets"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the four small datasets of the end-to-end test."""
    folder = tmp_path_factory.mktemp("questions")
    for name in ("vqa", "okvqa", "pope", "instruct"):
        settings = DATASETS / f"scenes-test-{name}.yaml"
        prepare_dataset(settings, folder / name)
    return folder


def scenes(count: int = 200) -> list[Scene]:
    rng = random.Random(3)
    return [sample_scene(rng) for _ in range(count)]


def test_visual_questions_are_answered_from_the_scene() -> None:
    rng = random.Random(0)
    types = Counter()
    for scene in scenes():
        for asked in visual_questions(scene, rng, 5):
            types[asked.answer_type] += 1
            text = asked.text.lower().rstrip("?")
            if text.startswith("what color is the background"):
                assert asked.answer == scene.background.colour
            elif text.startswith("what color is the"):
                shape = text.split()[-1]
                (item,) = [item for item in scene.objects if item.shape == shape]
                assert asked.answer == item.colour
            elif text.startswith("is there"):
                *colour, shape = text.removesuffix(" in the image").split()[3:]
                present = scene.count(shape=shape, colour=colour[0] if colour else None) > 0
                assert asked.answer == ("yes" if present else "no")
            elif text == "how many objects are there":
                number = {word: n for n, word in enumerate(NUMBERS)}
                said = number.get(asked.answer, asked.answer)
                assert int(said) == len(scene.objects)
    assert set(types) == {"yes/no", "number", "other"}


def test_ten_people_disagree_as_people_do() -> None:
    rng = random.Random(1)
    asked = [item for scene in scenes() for item in visual_questions(scene, rng, 4)]
    assert all(len(item.answers) == 10 for item in asked)
    unanimous = sum(len(set(item.answers)) == 1 for item in asked) / len(asked)
    right = sum(item.most_common == item.answer for item in asked) / len(asked)
    assert 0.2 < unanimous < 0.7
    assert 0.9 < right < 1.0, "the crowd is mostly right, not always"


def test_knowledge_is_not_in_the_image() -> None:
    rng = random.Random(2)
    facts = {*MATERIALS.values(), *TASTES.values()}
    named, hidden = 0, 0
    for scene in scenes():
        for asked in knowledge_questions(scene, rng, 2):
            assert asked.answer in facts
            source = MATERIALS if "made of" in asked.text else TASTES
            key = next(key for key, value in source.items() if value == asked.answer)
            # Either the fact's key is in the question, or the image has to tell it.
            named += key in asked.text.lower()
            hidden += key not in asked.text.lower()
            seen = {value for item in scene.objects for value in (item.shape, item.colour)}
            assert key in seen
    assert named > 0.3 * hidden and hidden > 0.3 * named


def test_files_are_in_the_formats_of_vqav2_and_okvqa(made: Path) -> None:
    annotations = read_json(made / "vqa/v2_mscoco_train2014_annotations.json")["annotations"]
    for entry in annotations:
        assert set(entry) == {
            "question_id",
            "image_id",
            "question_type",
            "answer_type",
            "multiple_choice_answer",
            "answers",
        }
        assert [answer["answer_id"] for answer in entry["answers"]] == list(range(1, 11))
    content = read_json(made / "okvqa/mscoco_val2014_annotations.json")
    assert content["question_types"] == {"one": "Materials", "two": "Tastes"}
    for entry in content["annotations"]:
        assert "multiple_choice_answer" not in entry
        assert all("raw_answer" in answer for answer in entry["answers"])
    questions = read_json(made / "vqa/v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    assert {entry["question_id"] // 1000 == entry["image_id"] for entry in questions} == {True}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pope_is_sampled_by_popes_rules(made: Path) -> None:
    settings = read_settings(DATASETS / "scenes-test-pope.yaml", ScenesSettings)
    objects = [
        list(dict.fromkeys(item.shape for item in entry.scene.objects))
        for entry in sample_items(settings)
    ]
    objects = [names for names in objects if len(names) >= settings.questions_per_image]
    frequency = Counter(name for names in objects for name in names)
    for category in ("random", "popular", "adversarial"):
        entries = lines(made / f"pope/coco_pope_{category}.json")
        assert [entry["question_id"] for entry in entries] == list(range(1, len(entries) + 1))
        assert [entry["label"] for entry in entries] == ["yes", "no"] * (len(entries) // 2)
        assert len(entries) == 4 * len(objects)
        names = [entry["text"].split()[3] for entry in entries]
        assert all(entry["text"] == f"Is there {a_or_an(name)} in the image?"
                   for entry, name in zip(entries, names, strict=True))  # fmt: skip
        for number, present in enumerate(objects):
            block = names[4 * number : 4 * number + 4]
            assert block[::2] == present[:2]
            assert not set(block[1::2]) & set(present)
            assert len(set(block)) == 4
            if category == "popular":
                absent = [name for name, _ in frequency.most_common() if name not in present]
                assert block[1::2] == absent[:2]


def a_or_an(name: str) -> str:
    return f"a {name}"  # no shape begins with a vowel


def test_adversarial_objects_stand_beside_the_one_asked_for(tmp_path: Path) -> None:
    settings = tmp_path / "pope.yaml"
    settings.write_text(
        "name: p\ngenerator: scenes\nlayout: pope\ndomain: studio\nseed: 1\n"
        "images: {test: 150}\nquestions_per_image: 2\n"
    )
    prepare_dataset(settings, tmp_path / "p")
    items = sample_items(read_settings(settings, ScenesSettings))
    together: Counter[tuple[str, str]] = Counter()
    for item in items:
        names = list(dict.fromkeys(thing.shape for thing in item.scene.objects))
        together.update((a, b) for a in names for b in names if a != b)

    def hits(category: str) -> int:
        entries = lines(tmp_path / f"p/coco_pope_{category}.json")
        pairs = [entry["text"].split()[3] for entry in entries]
        return sum(together[pairs[n], pairs[n + 1]] for n in range(0, len(pairs), 2))

    assert hits("adversarial") > 1.1 * hits("random")


def test_conversations_are_llavas(made: Path) -> None:
    entries = read_json(made / "instruct/llava_instruct_150k.json")
    for entry in entries:
        assert [turn["from"] for turn in entry["conversations"]] == ["human", "gpt"] * 3
        first, *others = [turn["value"] for turn in entry["conversations"][::2]]
        assert first.count("<image>") == 1
        assert not any("<image>" in text for text in others)
    manifest = read_manifest(made / "instruct/manifest.json")
    assert manifest.kind == "conversations" and len(manifest.split("train")) == 40
