"""Write a `scenes` dataset in the formats of VQAv2, OK-VQA, POPE and LLaVA-Instruct."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import write_json
from gapinit.data.locate import POPE_CATEGORIES
from gapinit.data.references import write_lines
from gapinit.data.scenes.items import Item, draw_coco, draw_images, stream
from gapinit.data.scenes.language import article, target_caption
from gapinit.data.scenes.questions import (
    KNOWLEDGE_TYPES,
    Asked,
    knowledge_questions,
    visual_questions,
)
from gapinit.data.scenes.settings import ScenesSettings


def write_vqa(settings: ScenesSettings, output: Path) -> None:
    """Write VQAv2's four files: questions and annotations of train and val."""
    drawn = draw_coco(settings, output)
    count = settings.questions_per_image
    for split in ("train", "val"):
        asked = [
            (image_id, visual_questions(item.scene, _questions_stream(settings, item), count))
            for item, image_id, _ in drawn
            if item.split == split
        ]
        _write_questions(output, "v2_", split, asked, {})


def write_okvqa(settings: ScenesSettings, output: Path) -> None:
    """Write OK-VQA's two files of the validation split, with raw and stemmed answers."""
    count = settings.questions_per_image
    asked = [
        (image_id, knowledge_questions(item.scene, _questions_stream(settings, item), count))
        for item, image_id, _ in draw_coco(settings, output)
    ]
    _write_questions(output, "", "val", asked, KNOWLEDGE_TYPES)


def _questions_stream(settings: ScenesSettings, item: Item) -> random.Random:
    return stream(settings, item.split, item.number, "questions")


def _write_questions(
    output: Path,
    version: str,
    split: str,
    asked: Sequence[tuple[int, Sequence[Asked]]],
    codes: dict[str, str],
) -> None:
    """Write one split's questions and annotations; `codes` selects OK-VQA's format."""
    questions, annotations = [], []
    for image_id, items in asked:
        for number, item in enumerate(items):
            ids = {"image_id": image_id, "question_id": 1000 * image_id + number}
            questions.append({**ids, "question": item.text})
            annotations.append(
                {
                    **ids,
                    "question_type": item.question_type,
                    "answer_type": "other" if codes else item.answer_type,
                    **({} if codes else {"multiple_choice_answer": item.most_common}),
                    "answers": _annotators(item, raw=bool(codes)),
                }
            )
    head = {
        "info": {"description": "procedural questions of gapinit", "version": "2.0"},
        "license": {"url": "", "name": "Apache-2.0"},
        "data_type": "mscoco",
        "data_subtype": f"{split}2014",
    }
    name = f"mscoco_{split}2014"
    write_json(
        output / f"{version}OpenEnded_{name}_questions.json",
        {**head, "task_type": "Open-Ended", "questions": questions},
    )
    content: dict[str, Any] = {**head, "annotations": annotations}
    if codes:
        content["question_types"] = codes
    write_json(output / f"{version}{name}_annotations.json", content)


def _annotators(item: Asked, raw: bool) -> list[dict[str, Any]]:
    return [
        {
            "answer_id": number,
            **({"raw_answer": answer} if raw else {}),
            "answer": answer.lower().strip(".") if raw else answer,
            "answer_confidence": "yes",
        }
        for number, answer in enumerate(item.answers, start=1)
    ]


def write_pope(settings: ScenesSettings, output: Path) -> None:
    """Write POPE's three files, sampled by its rules.

    Each of an image's first objects gives one question with the answer yes and one with the answer
    no. The second names an object that is not in the image and not in an earlier question: a random
    one (`random`), the most frequent one of all images (`popular`), or the one that most often
    occurs with the object of the first question (`adversarial`).
    Source: Li et al., Evaluating Object Hallucination in Large Vision-Language Models, 2023.
    """
    # ASSUME: POPE uses images with more than three objects; scenes have at most three. An object
    # is a shape, since POPE's objects are categories without attributes.
    wanted = settings.questions_per_image
    drawn = [
        (path.partition("/")[2], names)
        for item, _, path in draw_coco(settings, output)
        if len(names := list(dict.fromkeys(one.shape for one in item.scene.objects))) >= wanted
    ]
    objects = [names for _, names in drawn]
    frequency = Counter(name for names in objects for name in names)
    beside: dict[str, Counter[str]] = {name: Counter() for name in frequency}
    for names in objects:
        for first, second in permutations(names, 2):
            beside[first][second] += 1
    popular = [name for name, _ in frequency.most_common()]
    for category in POPE_CATEGORIES:
        rng = stream(settings, "pope", category)
        entries = []
        for image, names in drawn:
            asked = set(names)
            for name in names[:wanted]:
                ranked = {
                    "random": [],
                    "popular": popular,
                    "adversarial": [other for other, _ in beside[name].most_common()],
                }[category]
                absent = next((other for other in ranked if other not in asked), None)
                while absent is None or absent in asked:
                    absent = rng.choice(popular)
                asked.add(absent)
                entries += [_presence(image, name, "yes"), _presence(image, absent, "no")]
        numbered = [{"question_id": n, **entry} for n, entry in enumerate(entries, start=1)]
        write_lines(output / f"coco_pope_{category}.json", numbered)


def _presence(image: str, name: str, label: str) -> dict[str, str]:
    text = f"Is there {article(name)} in the image?"
    return {"image": image, "text": text, "label": label}


def write_llava(settings: ScenesSettings, output: Path) -> None:
    """Write a conversations file in LLaVA-Instruct's format, with COCO's file names of 2017."""
    entries = []
    for item, number, _ in draw_images(settings, output / "images", "train2017/{id:012d}.jpg"):
        name = f"{number:012d}"
        rng = _questions_stream(settings, item)
        turns = [("Describe the image.", target_caption(item.scene, rng))]
        asked = visual_questions(item.scene, rng, settings.questions_per_image - 1)
        turns += [(question.text, question.answer) for question in asked]
        rng.shuffle(turns)
        entries.append({"id": name, "image": f"{name}.jpg", "conversations": _said(turns, rng)})
    write_json(output / "llava_instruct_150k.json", entries)


def _said(turns: Sequence[tuple[str, str]], rng: random.Random) -> list[dict[str, str]]:
    """Return turns in LLaVA's format, with the image before or after the first question."""
    first, *others = turns
    text = f"<image>\n{first[0]}" if rng.random() < 0.5 else f"{first[0]}\n<image>"
    said = [(text, first[1]), *others]
    return [
        {"from": speaker, "value": value}
        for turn in said
        for speaker, value in zip(("human", "gpt"), turn, strict=True)
    ]
