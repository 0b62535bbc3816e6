"""What can be wrong with a dataset folder, and the lines that `gapinit data check` then prints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from .dataset_folders import LLAVA, VQA_TRAIN, VQA_TRAIN_ANSWERS, VQA_VAL, name_2014

# A damage: what is done to the good folder, and the file, entry and words of each line told.
Told = tuple[str, str, str]
Change = Callable[[Path], object]
DAMAGES: dict[str, tuple[str, Change, list[Told]]] = {}


def damage(name: str, folder: str, change: Change, *told: Told) -> None:
    assert name not in DAMAGES
    DAMAGES[name] = (folder, change, list(told))


def edit(file: str, change: Callable[[Any], object]) -> Change:
    def apply(root: Path) -> None:
        content = json.loads((root / file).read_text())
        change(content)
        (root / file).write_text(json.dumps(content))

    return apply


def edit_line(file: str, number: int, **changes: Any) -> Change:
    """Change keys of one line; None takes the key away."""

    def apply(root: Path) -> None:
        lines = (root / file).read_text().splitlines()
        entry = {**json.loads(lines[number - 1]), **changes}
        kept = {key: value for key, value in entry.items() if value is not None}
        lines[number - 1] = json.dumps(kept)
        (root / file).write_text("\n".join(lines))

    return apply


def write(file: str, text: str) -> Change:
    return lambda root: (root / file).write_text(text)


def remove(file: str) -> Change:
    return lambda root: (root / file).unlink()


def copy(source: str, target: str) -> Change:
    return lambda root: shutil.copyfile(root / source, root / target)


def truncate(file: str) -> Change:
    return lambda root: os.truncate(root / file, (root / file).stat().st_size // 2)


def link_out(file: str) -> Change:
    """Move a file or folder out of the root and leave a link."""

    def apply(root: Path) -> None:
        outside = root.parent / "outside"
        (root / file).rename(outside)
        (root / file).symlink_to(outside, target_is_directory=outside.is_dir())

    return apply


IMAGE = "images/train2014/COCO_train2014_000000000002.jpg"
IMAGE_ENTRY = "named by dataset_coco.json images[1]"
K = "dataset_coco.json"

damage("image missing", "karpathy", remove(IMAGE), (K, "images[1]", "names the image 'COCO_train"))
damage("image truncated", "karpathy", truncate(IMAGE), (IMAGE, IMAGE_ENTRY, "damaged image"))
damage("image empty", "karpathy", write(IMAGE, ""), (IMAGE, IMAGE_ENTRY, "damaged image"))
damage("no image", "karpathy", write(IMAGE, "<html>"), (IMAGE, IMAGE_ENTRY, "or none of JPEG"))
damage(
    "too many pixels",
    "karpathy",
    lambda root: Image.new("1", (20_000, 10_000)).save(root / IMAGE, "PNG"),
    (IMAGE, IMAGE_ENTRY, "too many pixels"),
)
damage(
    "too small",
    "karpathy",
    lambda root: Image.new("RGB", (4, 30)).save(root / IMAGE),
    (IMAGE, IMAGE_ENTRY, "too small: 4 x 30"),
)
damage(
    "image is a folder",
    "karpathy",
    lambda root: ((root / IMAGE).unlink(), (root / IMAGE).mkdir()),
    (K, "images[1]", "names the image"),
)
damage("image link out", "karpathy", link_out(IMAGE), (IMAGE, IMAGE_ENTRY, "a link that leads out"))
damage(
    "dangling link",
    "karpathy",
    lambda root: ((root / IMAGE).unlink(), (root / IMAGE).symlink_to("nowhere")),
    (K, "images[1]", "names the image"),
)
damage(
    "folder link out",
    "karpathy",
    link_out("images/train2014"),
    ("images/train2014", "named by dataset_coco.json images[0]", "a link that leads out of"),
)


def image(number: int, **changes: Any) -> Change:
    return edit(K, lambda content: content["images"][number].update(changes))


def without(file: str, group: str, number: int, key: str) -> Change:
    return edit(file, lambda content: content[group][number].pop(key))


damage(
    "absolute path",
    "karpathy",
    image(1, filename="/etc/passwd"),
    (K, "images[1]", "'/etc/passwd' leaves the image root"),
)
damage(
    "parent path",
    "karpathy",
    image(1, filepath="../data/images/train2014"),
    (K, "images[1]", "leaves the image root"),
)
damage(
    "windows path",
    "karpathy",
    image(1, filename="..\\x.jpg"),
    (K, "images[1]", "leaves the image root"),
)
damage(
    "image id twice",
    "karpathy",
    image(1, cocoid=1),
    (K, "images[1]", "duplicate image id 1, already used by images[0]"),
)
damage(
    "sentence id twice",
    "karpathy",
    edit(K, lambda c: c["images"][1]["sentences"][1].update(sentid=10)),
    (K, "images[1].sentences[1]", "duplicate annotation id (sentid) 10"),
)
damage(
    "white space",
    "karpathy",
    image(1, sentences=[{"raw": " \t\n"}]),
    (K, "images[1].sentences[0]", "the caption is empty"),
)
damage("no sentence", "karpathy", image(1, sentences=[]), (K, "images[1]", "has no caption"))
damage("unknown split", "karpathy", image(1, split="dev"), (K, "images[1]", "expected one of"))
damage(
    "split missing",
    "karpathy",
    without(K, "images", 1, "split"),
    (K, "images[1]", "the key 'split' is missing (cocoid 2)"),
)
damage(
    "id of a wrong type",
    "karpathy",
    image(1, cocoid="2"),
    (K, "images[1]", "'cocoid': expected a whole number, found '2'"),
)
damage(
    "raw of a wrong type",
    "karpathy",
    image(1, sentences=[{"raw": 5}]),
    (K, "images[1].sentences[0]", "'raw': expected a string, found 5"),
)
damage(
    "entry of a wrong type",
    "karpathy",
    edit(K, lambda c: c["images"].append("x")),
    (K, "images[7]", "expected an object, found 'x'"),
)
damage(
    "two defects in one entry",
    "karpathy",
    image(1, split="dev", filename="no.jpg"),
    (K, "images[1]", "expected one of"),
    (K, "images[1]", "names the image 'no.jpg'"),
)
damage(
    "bad entry and its bad image",
    "karpathy",
    lambda root: (image(1, split="dev")(root), (root / IMAGE).write_text("")),
    (K, "images[1]", "'split': expected one of"),
    (IMAGE, IMAGE_ENTRY, "damaged image"),
)
damage(
    "empty split",
    "karpathy",
    edit(K, lambda c: c.update(images=[i for i in c["images"] if i["split"] != "val"])),
    (K, "split 'val'", "has no images"),
)
damage(
    "no images",
    "karpathy",
    edit(K, lambda c: c.update(images=[])),
    *[(K, f"split '{split}'", "has no images") for split in ("train", "val", "test")],
)
damage(
    "key missing at the top",
    "karpathy",
    edit(K, lambda c: c.pop("images")),
    (K, "", "expected the key 'images' at the top level, found 'dataset'"),
)
damage("half a file", "karpathy", truncate(K), (K, "", "not valid JSON"))
damage("too deep", "karpathy", write(K, "[" * 100_000), (K, "", "nested too deeply"))
damage(
    "a number too long",
    "karpathy",
    write(K, '{"images": ' + "9" * 5000 + "}"),
    (K, "", "not a readable JSON"),
)
damage(
    "not UTF-8",
    "karpathy",
    lambda root: (root / K).write_bytes(b"\xff\xfe{}"),
    (K, "", "not valid JSON"),
)
damage("empty file", "karpathy", write(K, ""), (K, "", "not valid JSON"))
damage("a list at the top", "karpathy", write(K, "[1]"), (K, "", "expected an object at the top"))
damage("annotations link out", "karpathy", link_out(K), (K, "", "a link that leads out of"))
damage(
    "trained on and tested on under another id",
    "karpathy",
    image(5, filename=name_2014(2), filepath="train2014"),
    (K, "images[1]", "is in the split 'train' and, as images[5], in 'test'"),
)
damage(
    "trained on and tested on as a copy",
    "karpathy",
    copy(IMAGE, f"images/val2014/{name_2014(6)}"),
    (
        K,
        "images[1]",
        "and COCO_val2014_000000000006.jpg) is in the split 'train' and, as images[5]",
    ),
)
damage(
    "restval is trained on",
    "karpathy",
    copy(f"images/val2014/{name_2014(4)}", f"images/val2014/{name_2014(6)}"),
    (K, "images[3]", "is in the split 'restval' and, as images[5], in 'test'"),
)
damage(
    "moved to another split",
    "karpathy",
    edit(
        K,
        lambda c: c["images"].append(
            {**c["images"][1], "split": "test", "sentences": [{"raw": "a"}]}
        ),
    ),
    (K, "images[7]", "duplicate image id 2, already used by images[1]"),
    (K, "images[1]", "is in the split 'train' and, as images[7], in 'test'"),
)
damage(
    "flickr image missing",
    "flickr30k",
    remove("flickr30k-images/1001.jpg"),
    ("dataset_flickr30k.json", "images[1]", "names the image '1001.jpg'"),
)
damage(
    "flickr id missing",
    "flickr30k",
    without("dataset_flickr30k.json", "images", 1, "imgid"),
    ("dataset_flickr30k.json", "images[1]", "the key 'imgid' is missing"),
)

C = "annotations/captions_train2017.json"
V = "annotations/captions_val2017.json"


def note(number: int, **changes: Any) -> Change:
    return edit(C, lambda content: content["annotations"][number].update(changes))


damage(
    "captions image missing",
    "captions2017",
    remove("train2017/000000000002.jpg"),
    (C, "images[1]", "names the image '000000000002.jpg'"),
)
damage(
    "caption empty",
    "captions2017",
    note(2, caption=""),
    (C, "annotations[2]", "the caption is empty. Write one or remove the entry. (id 20)"),
)
damage(
    "caption missing",
    "captions2017",
    without(C, "annotations", 2, "caption"),
    (C, "annotations[2]", "the key 'caption' is missing"),
)
damage(
    "annotation id twice",
    "captions2017",
    note(2, id=10),
    (C, "annotations[2]", "duplicate annotation id 10"),
)
damage(
    "annotation without image",
    "captions2017",
    note(2, image_id=99),
    (C, "annotations[2]", "'image_id': 99 is no entry of 'images'"),
)
damage(
    "image without annotation",
    "captions2017",
    edit(C, lambda c: c.update(annotations=c["annotations"][2:])),
    (C, "images[0]", "image 1 has no caption"),
)
damage(
    "captions image id twice",
    "captions2017",
    edit(C, lambda c: c["images"][1].update(id=1)),
    (C, "images[1]", "duplicate image id 1"),
)
damage(
    "captions image id of a wrong type",
    "captions2017",
    edit(C, lambda c: c["images"][1].update(id="2")),
    (C, "images[1]", "'id': expected a whole number, found '2'"),
)
damage(
    "captions of no images",
    "captions2017",
    edit(C, lambda c: c.update(images=[], annotations=[])),
    (C, "", "has no captioned images"),
)
damage(
    "captions without list",
    "captions2017",
    edit(C, lambda c: c.update(annotations=7)),
    (C, "", "'annotations': expected a list, found 7"),
)
damage("half a pair", "captions2017", remove(V), (V, "", "no such file, but captions_train2017"))
damage("half a captions file", "captions2017", truncate(C), (C, "", "not valid JSON"))
damage(
    "an image of both files",
    "captions2017",
    lambda root: (
        copy("train2017/000000000002.jpg", "val2017/000000000002.jpg")(root),
        edit(V, lambda c: c["images"].append({"id": 99, "file_name": "000000000002.jpg"}))(root),
        edit(V, lambda c: c["annotations"].append({"id": 9, "image_id": 99, "caption": "a"}))(root),
    ),
    (C, "images[1]", "in the split 'train' and, as images[2] of captions_val2017.json, in 'val'"),
)
damage(
    "an image id of both files",
    "captions2017",
    edit(
        V,
        lambda c: (
            c["images"][0].update(id=2),
            [n.update(image_id=2) for n in c["annotations"][:2]],
        ),
    ),
    (C, "images[1]", "image 2 (000000000002.jpg and 000000000006.jpg) is in the split 'train'"),
)
damage(
    "bytes of both files",
    "captions2017",
    copy("train2017/000000000002.jpg", "val2017/000000000006.jpg"),
    (C, "images[1]", "the picture (000000000002.jpg and 000000000006.jpg) is in the split"),
)
damage(
    "single captions",
    "single",
    edit("mine.json", lambda c: c["annotations"][0].pop("id")),
    ("mine.json", "annotations[0]", "the key 'id' is missing"),
)
damage(
    "single captions no object",
    "single",
    write("mine.json", "null"),
    ("mine.json", "", "expected annotations or questions, found null"),
)
damage(
    "single captions no JSON",
    "single",
    write("mine.json", "{"),
    ("mine.json", "", "not valid JSON"),
)


def question(number: int, **changes: Any) -> Change:
    return edit(VQA_TRAIN, lambda content: content["questions"][number].update(changes))


def annotation(number: int, **changes: Any) -> Change:
    return edit(VQA_TRAIN_ANSWERS, lambda content: content["annotations"][number].update(changes))


def answers(change: Callable[[list[Any]], object]) -> Change:
    return edit(VQA_TRAIN_ANSWERS, lambda content: change(content["annotations"][1]["answers"]))


Q, A = VQA_TRAIN, VQA_TRAIN_ANSWERS
damage(
    "question image missing",
    "vqa",
    remove("train2014/COCO_train2014_000000000002.jpg"),
    (Q, "questions[2]", "names the image COCO_{train,val}2014_000000000002.jpg"),
)
damage(
    "question image damaged",
    "vqa",
    write("train2014/COCO_train2014_000000000002.jpg", "x"),
    ("train2014/COCO_train2014_000000000002.jpg", f"named by {Q} questions[2]", "damaged"),
)
damage(
    "question id twice",
    "vqa",
    question(1, question_id=10),
    (Q, "questions[1]", "duplicate question id 10, already used by questions[0]"),
)
damage(
    "question id missing",
    "vqa",
    without(Q, "questions", 1, "question_id"),
    (Q, "questions[1]", "the key 'question_id' is missing"),
)
damage(
    "question without annotation",
    "vqa",
    edit(A, lambda c: c["annotations"].pop(1)),
    (Q, "questions[1]", f"question 11 has no annotation in {A}"),
)
damage(
    "annotation without question",
    "vqa",
    edit(Q, lambda c: c["questions"].pop(1)),
    (A, "annotations[1]", f"question 11 has no question in {Q}"),
)
damage(
    "question empty",
    "vqa",
    question(1, question="  "),
    (Q, "questions[1]", "'question': the question is empty"),
)
damage(
    "question of a wrong type",
    "vqa",
    question(1, question=None),
    (Q, "questions[1]", "'question': expected a string, found null"),
)
damage(
    "another image in the annotation",
    "vqa",
    annotation(1, image_id=2),
    (A, "annotations[1]", "'image_id': 2, but its question, questions[1] of"),
)
damage(
    "annotation id twice in answers",
    "vqa",
    annotation(1, question_id=10),
    (A, "annotations[1]", "duplicate question id 10"),
)
damage(
    "nine answers",
    "vqa",
    answers(lambda given: given.pop()),
    (A, "annotations[1]", "expected 10 answers, found 9"),
)
damage(
    "eleven answers",
    "vqa",
    answers(lambda given: given.append(given[0])),
    (A, "annotations[1]", "expected 10 answers, found 11"),
)
damage(
    "no answers",
    "vqa",
    answers(lambda given: given.clear()),
    (A, "annotations[1]", "expected 10 answers, found 0"),
)
damage(
    "answer empty",
    "vqa",
    answers(lambda given: given[3].update(answer="\n")),
    (A, "annotations[1].answers[3]", "'answer': the answer is empty"),
)
damage(
    "answer of a wrong type",
    "vqa",
    answers(lambda given: given[3].update(answer=3)),
    (A, "annotations[1].answers[3]", "'answer': expected a string, found 3"),
)
damage(
    "answer no object",
    "vqa",
    answers(lambda given: given.__setitem__(3, "noise")),
    (A, "annotations[1].answers[3]", "expected an object, found 'noise'"),
)
damage(
    "answer type missing",
    "vqa",
    without(A, "annotations", 1, "answer_type"),
    (A, "annotations[1]", "the key 'answer_type' is missing"),
)
damage(
    "no questions",
    "vqa",
    lambda root: (
        edit(Q, lambda c: c.update(questions=[]))(root),
        edit(A, lambda c: c.update(annotations=[]))(root),
    ),
    (Q, "", "has no questions"),
)
damage(
    "annotations file missing",
    "vqa",
    remove(A),
    (Q, "", f"no file has the annotations of these questions (expected {A})"),
)
damage(
    "questions file missing",
    "vqa",
    remove(Q),
    (A, "", "no file has the questions of these annotations"),
)
damage("annotations no JSON", "vqa", truncate(A), (A, "", "not valid JSON"))
damage("questions no JSON", "vqa", truncate(Q), (Q, "", "not valid JSON"))
damage(
    "questions renamed",
    "vqa",
    edit(Q, lambda c: c.update(items=c.pop("questions"))),
    (Q, "", "expected the key 'questions' at the top level"),
)
damage(
    "a question on a validation image",
    "vqa",
    lambda root: (
        question(1, image_id=6)(root),
        annotation(1, image_id=6)(root),
    ),
    (Q, "questions[1]", f"in the split 'train' and, as questions[0] of {VQA_VAL}, in 'val'"),
)
damage(
    "raw answer empty",
    "okvqa",
    edit(
        "okvqa/mscoco_val2014_annotations.json",
        lambda c: c["annotations"][1]["answers"][3].update(raw_answer=""),
    ),
    ("okvqa/mscoco_val2014_annotations.json", "annotations[1].answers[3]", "'raw_answer'"),
)

P = "pope/coco_pope_popular.json"
damage(
    "label",
    "pope",
    edit_line(P, 2, label="maybe"),
    (P, "line 2", "'label': expected yes or no, found 'maybe' (question_id 2)"),
)
damage(
    "label missing",
    "pope",
    edit_line(P, 2, label=None),
    (P, "line 2", "the key 'label' is missing"),
)
damage(
    "pope question id twice",
    "pope",
    edit_line(P, 2, question_id=1),
    (P, "line 2", "duplicate question id 1, already used by line 1"),
)
damage(
    "pope question empty",
    "pope",
    edit_line(P, 2, text=""),
    (P, "line 2", "'text': the question is empty"),
)
damage(
    "pope image missing",
    "pope",
    edit_line(P, 2, image="COCO_val2014_000000000099.jpg"),
    (P, "line 2", "names the image 'COCO_val2014_000000000099.jpg'"),
)
damage(
    "pope path leaves",
    "pope",
    edit_line(P, 2, image="../../x.jpg"),
    (P, "line 2", "leaves the image root"),
)
damage(
    "pope line no JSON",
    "pope",
    lambda root: (root / P).write_text((root / P).read_text().replace("{", "", 1)),
    (P, "line 1", "not valid JSON"),
)
damage("pope empty", "pope", write(P, "\n"), (P, "", "has no questions"))
damage(
    "pope as a list",
    "pope",
    write(P, '[{"question_id": 1,\n "label": "yes"}]'),
    (P, "", "expected one JSON object a line, found a list"),
)


def said(number: int, change: Callable[[list[Any]], object]) -> Change:
    return edit(LLAVA, lambda content: change(content[number]["conversations"]))


L = LLAVA
damage(
    "turns swapped",
    "llava",
    said(1, lambda turns: turns.reverse()),
    (L, "[1].conversations[0]", "expected 'human' in this turn, found 'gpt'"),
)
damage(
    "human twice",
    "llava",
    said(0, lambda turns: turns.pop(1)),
    (L, "[0].conversations[1]", "expected 'gpt' in this turn, found 'human'"),
)
damage(
    "no last answer",
    "llava",
    said(1, lambda turns: turns.pop()),
    (L, "[1].conversations[0]", "ends without an answer"),
)
damage(
    "no turns",
    "llava",
    said(1, lambda turns: turns.clear()),
    (L, "[1]", "the conversation is empty"),
)
damage(
    "unknown speaker",
    "llava",
    said(1, lambda turns: turns[1].update({"from": "bard"})),
    (L, "[1].conversations[1]", "expected 'gpt' in this turn, found 'bard'"),
)
damage(
    "nothing asked",
    "llava",
    said(1, lambda turns: turns[0].update(value="<image>\n ")),
    (L, "[1].conversations[0]", "'value': the text is empty"),
)
damage(
    "value of a wrong type",
    "llava",
    said(1, lambda turns: turns[1].update(value=1)),
    (L, "[1].conversations[1]", "'value': expected a string, found 1"),
)
damage(
    "conversation without image",
    "llava",
    edit(L, lambda c: c[1].pop("image")),
    (L, "[1]", "the key 'image' is missing (id '000000000001')"),
)
damage(
    "conversation image missing",
    "llava",
    edit(L, lambda c: c[1].update(image="no.jpg")),
    (L, "[1]", "names the image 'no.jpg'"),
)
damage(
    "conversation path leaves",
    "llava",
    edit(L, lambda c: c[1].update(image="../no.jpg")),
    (L, "[1]", "leaves the image root"),
)
damage(
    "conversation twice",
    "llava",
    edit(L, lambda c: c.append(c[1])),
    (L, "[6]", "the same image and conversation as [1]"),
)
damage(
    "conversation no object",
    "llava",
    edit(L, lambda c: c.append(3)),
    (L, "[6]", "expected an object, found 3"),
)
damage("no conversations", "llava", write(L, "[]"), (L, "", "has no conversations"))
damage("conversations no list", "llava", write(L, '{"a": 1}'), (L, "", "expected a list at the"))

damage(
    "alt-text empty",
    "pretraining",
    edit_line("alt_text.jsonl", 2, text=" "),
    ("alt_text.jsonl", "line 2", "the caption is empty"),
)
damage(
    "alt-text image damaged",
    "pretraining",
    write("images/1.jpg", ""),
    ("images/1.jpg", "named by alt_text.jsonl line 3", "damaged image"),
)
damage("corpus missing", "pretraining", remove("corpus.txt"), ("corpus.txt", "", "no such file"))

damage(
    "training captions of Karpathy's test images",
    "everything",
    edit(
        "annotations/captions_train2014.json",
        lambda c: (
            c["images"].append({"id": 6, "file_name": name_2014(6)}),
            c["annotations"].append({"id": 1000, "image_id": 6, "caption": "a"}),
        ),
    ),
    ("annotations/captions_train2014.json", "images[3]", "in the split 'train' and, as images["),
)
damage(
    "POPE on a training image",
    "everything",
    edit_line(P, 2, image=name_2014(1)),
    ("annotations/captions_train2014.json", "images[0]", f"line 2 of {Path(P).name}, in 'test'"),
    (K, "images[0]", f"line 2 of {Path(P).name}, in 'test'"),
    (f"vqav2/{Q}", "questions[0]", f"line 2 of {Path(P).name}, in 'test'"),
)
