"""Small good dataset folders, one for each format that `gapinit data check` reads."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from .plain_json import write_json

TRAIN, RESTVAL, VAL, TEST = (1, 2, 3), (4,), (5,), (6, 7)
VQA_TRAIN = "v2_OpenEnded_mscoco_train2014_questions.json"
VQA_TRAIN_ANSWERS = "v2_mscoco_train2014_annotations.json"
VQA_VAL = "v2_OpenEnded_mscoco_val2014_questions.json"
LLAVA = "llava_instruct_150k.json"


def draw(path: Path, number: int) -> None:
    """Write a small JPEG that no other number gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = random.Random(number).randbytes(3 * 24 * 24)
    Image.frombytes("RGB", (24, 24), pixels).save(path, "JPEG")


def write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def name_2014(number: int) -> str:
    release = "train2014" if number in TRAIN else "val2014"
    return f"COCO_{release}_{number:012d}.jpg"


def draw_2014(folder: Path, numbers: tuple[int, ...]) -> None:
    for number in numbers:
        draw(folder / name_2014(number)[5:].partition("_")[0] / name_2014(number), number)


def sentences(number: int) -> list[dict[str, Any]]:
    return [{"raw": f"picture {number}", "sentid": 10 * number + n} for n in range(2)]


def karpathy(root: Path) -> None:
    draw_2014(root / "images", (*TRAIN, *RESTVAL, *VAL, *TEST))
    splits = {"train": TRAIN, "restval": RESTVAL, "val": VAL, "test": TEST}
    entries = [
        {
            "filepath": "train2014" if number in TRAIN else "val2014",
            "filename": name_2014(number),
            "imgid": number - 1,
            "cocoid": number,
            "split": split,
            "sentences": sentences(number),
        }
        for split, numbers in splits.items()
        for number in numbers
    ]
    write_json(root / "dataset_coco.json", {"images": entries, "dataset": "coco"})


def flickr30k(root: Path) -> None:
    entries = []
    for number, split in enumerate(("train", "train", "val", "test")):
        draw(root / "flickr30k-images" / f"{1000 + number}.jpg", number)
        entry = {"filename": f"{1000 + number}.jpg", "imgid": number, "split": split}
        entries.append({**entry, "sentences": sentences(number)})
    write_json(root / "dataset_flickr30k.json", {"images": entries, "dataset": "flickr30k"})


def caption_file(path: Path, names: dict[int, str]) -> None:
    notes = [
        {"id": 10 * number + n, "image_id": number, "caption": f"picture {number}"}
        for number in names
        for n in range(2)
    ]
    images = [{"id": number, "file_name": name} for number, name in names.items()]
    write_json(path, {"images": images, "annotations": notes})


def captions2017(root: Path) -> None:
    for split, numbers in (("train", TRAIN), ("val", TEST)):
        names = {number: f"{number:012d}.jpg" for number in numbers}
        for number, name in names.items():
            draw(root / f"{split}2017" / name, number)
        caption_file(root / "annotations" / f"captions_{split}2017.json", names)


def captions2014(root: Path) -> None:
    for split, numbers in (("train", TRAIN), ("val", TEST)):
        names = {number: name_2014(number) for number in numbers}
        draw_2014(root, numbers)
        caption_file(root / "annotations" / f"captions_{split}2014.json", names)


def single(root: Path) -> None:
    for number in range(4):
        draw(root / "images" / f"{number}.jpg", number)
    caption_file(root / "mine.json", {number: f"{number}.jpg" for number in range(4)})


def question_files(root: Path, version: str, split: str, numbers: tuple[int, ...]) -> None:
    head = [
        {"image_id": number, "question_id": 10 * number + n} for number in numbers for n in range(2)
    ]
    questions = [{**entry, "question": "What is it?"} for entry in head]
    answer = {"answer": "noise", "answer_confidence": "yes"}
    if not version:
        answer["raw_answer"] = "noises"
    kinds = {"question_type": "what", "answer_type": "other"}
    answers = [{**answer, "answer_id": n} for n in range(1, 11)]
    annotations = [{**entry, **kinds, "answers": answers} for entry in head]
    name = f"mscoco_{split}2014"
    write_json(root / f"{version}OpenEnded_{name}_questions.json", {"questions": questions})
    write_json(root / f"{version}{name}_annotations.json", {"annotations": annotations})


def vqa(root: Path) -> None:
    draw_2014(root, (*TRAIN, *TEST))
    question_files(root, "v2_", "train", TRAIN)
    question_files(root, "v2_", "val", TEST)


def okvqa(root: Path) -> None:
    draw_2014(root, TEST)
    question_files(root / "okvqa", "", "val", TEST)


def pope(root: Path) -> None:
    draw_2014(root, TEST)
    for category in ("random", "popular", "adversarial"):
        entries = [
            {
                "question_id": n + 1,
                "image": name_2014(TEST[n % 2]),
                "text": f"Is there a cat in the image? {n}",
                "label": ("yes", "no")[n // 2],
            }
            for n in range(4)
        ]
        write_lines(root / "pope" / f"coco_pope_{category}.json", entries)


def llava(root: Path) -> None:
    entries = []
    for number in TRAIN:
        name = f"{number:012d}"
        draw(root / "train2017" / f"{name}.jpg", number)
        turns = ("<image>\nWhat is it?", f"Noise {number}.", "Are you sure?", "Yes.")
        said = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(turns)]
        short = [{**said[0], "value": "Describe it.\n<image>"}, said[1]]
        for conversation in (said, short):
            entries.append({"id": name, "image": f"{name}.jpg", "conversations": conversation})
    write_json(root / LLAVA, entries)


def pretraining(root: Path) -> None:
    entries = []
    for number in range(3):
        draw(root / "images" / f"{number}.jpg", number)
        entries += [{"image": f"images/{number}.jpg", "text": f"noise {n}"} for n in range(2)]
    write_lines(root / "alt_text.jsonl", entries)
    (root / "corpus.txt").write_text("one\ntwo\n")


def everything(root: Path) -> None:
    """Make what the real COCO folder may hold, with all that its releases share."""
    for make in (karpathy, captions2014, pope, okvqa, llava):
        make(root)
    question_files(root / "vqav2", "v2_", "train", TRAIN)
    question_files(root / "vqav2", "v2_", "val", (*RESTVAL, *VAL, *TEST))
    caption_file(
        root / "annotations" / "captions_val2014.json",
        {number: name_2014(number) for number in (*RESTVAL, *VAL, *TEST)},
    )
    write_json(root / "annotations" / "instances_val2014.json", {"annotations": [], "images": []})
    write_json(root / "v2_mscoco_train2014_complementary_pairs.json", [[1, 2]])


def retrieved(root: Path) -> None:
    """Make a data folder as the workflow retrieves it: COCO with all that refers to its images."""
    coco = root / "coco"
    everything(coco)
    (root / "karpathy").mkdir()
    (coco / "dataset_coco.json").rename(root / "karpathy" / "dataset_coco.json")
    (coco / "llava").mkdir()
    (coco / LLAVA).rename(coco / "llava" / LLAVA)
    draw_2014(coco, (*RESTVAL, *VAL))
    shutil.rmtree(coco / "images")
    # train2017 holds images of 2014's validation set, Karpathy's test images among them.
    names = {number: f"{number:012d}.jpg" for number in (*TRAIN, *RESTVAL, *VAL, *TEST)}
    caption_file(coco / "annotations" / "captions_train2017.json", names)


GOOD: dict[str, Callable[[Path], None]] = {
    make.__name__: make
    for make in (
        karpathy,
        flickr30k,
        captions2017,
        captions2014,
        single,
        vqa,
        okvqa,
        pope,
        llava,
        pretraining,
        everything,
    )
}
