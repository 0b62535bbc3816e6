"""Write the reference files for scoring, in each benchmark's own format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import atomic_file, atomic_folder, write_json
from gapinit.data.captions import CaptionedImage
from gapinit.data.locate import POPE_CATEGORIES
from gapinit.data.manifest import Kind, Manifest
from gapinit.data.questions import Question

SCORED_SPLITS = ("val", "test")


def write_references(manifest: Manifest, folder: Path) -> None:
    """Write the references of the validation and test splits; conversations have none."""
    with atomic_folder(folder) as temporary:
        for split in SCORED_SPLITS:
            samples: Any = manifest.splits.get(split)
            if samples and manifest.kind == "captions":
                write_captions(samples, temporary / f"{split}.json")
            elif samples and manifest.kind == "vqa":
                write_vqa(samples, temporary, split)
            elif samples and manifest.kind == "pope":
                write_pope(samples, temporary, split)


def reference_options(kind: Kind, folder: str) -> list[str]:
    """Return the options of `gapinit score` for the test references in `folder`."""
    if kind == "vqa":
        return [
            f"--questions={folder}/test_questions.json",
            f"--annotations={folder}/test_annotations.json",
        ]
    if kind == "pope":
        return [f"--questions={folder}/test_{category}.json" for category in POPE_CATEGORIES]
    return [f"--references={folder}/test.json"]


def write_captions(images: Sequence[CaptionedImage], path: Path) -> None:
    """Write images and their captions as COCO captions JSON."""
    annotations = [(image.image_id, text) for image in images for text in image.captions]
    write_json(
        path,
        {
            "info": {"description": "reference captions of one split"},
            "licenses": [],
            "type": "captions",
            "images": [{"id": image.image_id, "file_name": image.path.name} for image in images],
            "annotations": [
                {"id": number, "image_id": image_id, "caption": text}
                for number, (image_id, text) in enumerate(annotations, start=1)
            ],
        },
    )


def write_vqa(questions: Sequence[Question], folder: Path, split: str) -> None:
    """Write questions and annotations as two files in VQAv2's format."""
    asked = [
        {"image_id": item.image_id, "question": item.text, "question_id": item.question_id}
        for item in questions
    ]
    annotated = [
        {
            "question_id": item.question_id,
            "image_id": item.image_id,
            "question_type": item.question_type,
            "answer_type": item.answer_type,
            "answers": [
                {"answer_id": number, "answer": answer}
                for number, answer in enumerate(item.answers, start=1)
            ],
        }
        for item in questions
    ]
    write_json(folder / f"{split}_questions.json", {"questions": asked})
    write_json(folder / f"{split}_annotations.json", {"annotations": annotated})


def write_pope(questions: Sequence[Question], folder: Path, split: str) -> None:
    """Write one JSON-lines file per category, in POPE's format."""
    for category in POPE_CATEGORIES:
        entries = [
            {
                "question_id": item.question_id,
                "image": item.path.name,
                "text": item.text,
                "label": item.answers[0],
            }
            for item in questions
            if item.category == category
        ]
        write_lines(folder / f"{split}_{category}.json", entries)


def write_lines(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write a JSON-lines file atomically."""
    with atomic_file(path) as temporary:
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        temporary.write_text(text, encoding="utf-8", newline="\n")
