"""What can be wrong with questions, conversations and alt-texts, and what is then told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .damages import Change, Damages, Section, edit, edit_line, remove, truncate, without, write
from .dataset_folders import LLAVA, VQA_TRAIN, VQA_TRAIN_ANSWERS, VQA_VAL, name_2014

Q, A, L = VQA_TRAIN, VQA_TRAIN_ANSWERS, LLAVA
P = "pope/coco_pope_popular.json"
OK = "okvqa/mscoco_val2014_annotations.json"
T = "annotations/captions_train2014.json"

DAMAGES: Damages = {}
questions_file = Section(DAMAGES, "vqa", Q)
answers_file = Section(DAMAGES, "vqa", A)
okvqa = Section(DAMAGES, "okvqa", OK)
pope = Section(DAMAGES, "pope", P)
llava = Section(DAMAGES, "llava", L)
pretraining = Section(DAMAGES, "pretraining", "alt_text.jsonl")
everything = Section(DAMAGES, "everything", T)


def question(number: int, **changes: Any) -> Change:
    return edit(VQA_TRAIN, lambda content: content["questions"][number].update(changes))


def annotation(number: int, **changes: Any) -> Change:
    return edit(VQA_TRAIN_ANSWERS, lambda content: content["annotations"][number].update(changes))


def answers(change: Callable[[list[Any]], object]) -> Change:
    return edit(VQA_TRAIN_ANSWERS, lambda content: change(content["annotations"][1]["answers"]))


questions_file(
    "question image missing",
    remove("train2014/COCO_train2014_000000000002.jpg"),
    "questions[2] | names the image COCO_{train,val}2014_000000000002.jpg",
)
questions_file(
    "question image damaged",
    write("train2014/COCO_train2014_000000000002.jpg", "x"),
    f"train2014/COCO_train2014_000000000002.jpg | named by {Q} questions[2] | damaged",
)
questions_file(
    "question id twice",
    question(1, question_id=10),
    "questions[1] | duplicate question id 10, already used by questions[0]",
)
questions_file(
    "question id missing",
    without(Q, "questions", 1, "question_id"),
    "questions[1] | the key 'question_id' is missing",
)
questions_file(
    "question without annotation",
    edit(A, lambda c: c["annotations"].pop(1)),
    f"questions[1] | question 11 has no annotation in {A}",
)
answers_file(
    "annotation without question",
    edit(Q, lambda c: c["questions"].pop(1)),
    f"annotations[1] | question 11 has no question in {Q}",
)
questions_file(
    "question empty", question(1, question="  "), "questions[1] | 'question': the question is empty"
)
questions_file(
    "question of a wrong type",
    question(1, question=None),
    "questions[1] | 'question': expected a string, found null",
)
answers_file(
    "another image in the annotation",
    annotation(1, image_id=2),
    "annotations[1] | 'image_id': 2, but its question, questions[1] of",
)
answers_file(
    "annotation id twice in answers",
    annotation(1, question_id=10),
    "annotations[1] | duplicate question id 10",
)
answers_file(
    "nine answers",
    answers(lambda given: given.pop()),
    "annotations[1] | expected 10 answers, found 9",
)
answers_file(
    "eleven answers",
    answers(lambda given: given.append(given[0])),
    "annotations[1] | expected 10 answers, found 11",
)
answers_file(
    "no answers",
    answers(lambda given: given.clear()),
    "annotations[1] | expected 10 answers, found 0",
)
answers_file(
    "answer empty",
    answers(lambda given: given[3].update(answer="\n")),
    "annotations[1].answers[3] | 'answer': the answer is empty",
)
answers_file(
    "answer of a wrong type",
    answers(lambda given: given[3].update(answer=3)),
    "annotations[1].answers[3] | 'answer': expected a string, found 3",
)
answers_file(
    "answer no object",
    answers(lambda given: given.__setitem__(3, "noise")),
    "annotations[1].answers[3] | expected an object, found 'noise'",
)
answers_file(
    "answer type missing",
    without(A, "annotations", 1, "answer_type"),
    "annotations[1] | the key 'answer_type' is missing",
)
questions_file(
    "no questions",
    lambda root: (
        edit(Q, lambda c: c.update(questions=[]))(root),
        edit(A, lambda c: c.update(annotations=[]))(root),
    ),
    " | has no questions",
)
questions_file(
    "annotations file missing",
    remove(A),
    f" | no file has the annotations of these questions (expected {A})",
)
answers_file(
    "questions file missing", remove(Q), " | no file has the questions of these annotations"
)
answers_file("annotations no JSON", truncate(A), " | not valid JSON")
questions_file("questions no JSON", truncate(Q), " | not valid JSON")
questions_file(
    "questions renamed",
    edit(Q, lambda c: c.update(items=c.pop("questions"))),
    " | expected the key 'questions' at the top level",
)
questions_file(
    "a question on a validation image",
    lambda root: (
        question(1, image_id=6)(root),
        annotation(1, image_id=6)(root),
    ),
    f"questions[1] | in the split 'train' and, as questions[0] of {VQA_VAL}, in 'val'",
)
okvqa(
    "raw answer empty",
    edit(
        OK,
        lambda c: c["annotations"][1]["answers"][3].update(raw_answer=""),
    ),
    "annotations[1].answers[3] | 'raw_answer'",
)

pope(
    "label",
    edit_line(P, 2, label="maybe"),
    "line 2 | 'label': expected yes or no, found 'maybe' (question_id 2)",
)
pope("label missing", edit_line(P, 2, label=None), "line 2 | the key 'label' is missing")
pope(
    "pope question id twice",
    edit_line(P, 2, question_id=1),
    "line 2 | duplicate question id 1, already used by line 1",
)
pope("pope question empty", edit_line(P, 2, text=""), "line 2 | 'text': the question is empty")
pope(
    "pope image missing",
    edit_line(P, 2, image="COCO_val2014_000000000099.jpg"),
    "line 2 | names the image 'COCO_val2014_000000000099.jpg'",
)
pope("pope path leaves", edit_line(P, 2, image="../../x.jpg"), "line 2 | leaves the image root")
pope(
    "pope line no JSON",
    lambda root: (root / P).write_text((root / P).read_text().replace("{", "", 1)),
    "line 1 | not valid JSON",
)
pope("pope empty", write(P, "\n"), " | has no questions")
pope(
    "pope as a list",
    write(P, '[{"question_id": 1,\n "label": "yes"}]'),
    " | expected one JSON object a line, found a list",
)


def said(number: int, change: Callable[[list[Any]], object]) -> Change:
    return edit(LLAVA, lambda content: change(content[number]["conversations"]))


llava(
    "turns swapped",
    said(1, lambda turns: turns.reverse()),
    "[1].conversations[0] | expected 'human' in this turn, found 'gpt'",
)
llava(
    "human twice",
    said(0, lambda turns: turns.pop(1)),
    "[0].conversations[1] | expected 'gpt' in this turn, found 'human'",
)
llava(
    "no last answer",
    said(1, lambda turns: turns.pop()),
    "[1].conversations[0] | ends without an answer",
)
llava("no turns", said(1, lambda turns: turns.clear()), "[1] | the conversation is empty")
llava(
    "unknown speaker",
    said(1, lambda turns: turns[1].update({"from": "bard"})),
    "[1].conversations[1] | expected 'gpt' in this turn, found 'bard'",
)
llava(
    "nothing asked",
    said(1, lambda turns: turns[0].update(value="<image>\n ")),
    "[1].conversations[0] | 'value': the text is empty",
)
llava(
    "value of a wrong type",
    said(1, lambda turns: turns[1].update(value=1)),
    "[1].conversations[1] | 'value': expected a string, found 1",
)
llava(
    "conversation without image",
    edit(L, lambda c: c[1].pop("image")),
    "[1] | the key 'image' is missing (id '000000000001')",
)
llava(
    "conversation image missing",
    edit(L, lambda c: c[1].update(image="no.jpg")),
    "[1] | names the image 'no.jpg'",
)
llava(
    "conversation path leaves",
    edit(L, lambda c: c[1].update(image="../no.jpg")),
    "[1] | leaves the image root",
)
llava(
    "conversation twice",
    edit(L, lambda c: c.append(c[1])),
    "[6] | the same image and conversation as [1]",
)
llava("conversation no object", edit(L, lambda c: c.append(3)), "[6] | expected an object, found 3")
llava("no conversations", write(L, "[]"), " | has no conversations")
llava("conversations no list", write(L, '{"a": 1}'), " | expected a list at the")

pretraining(
    "alt-text empty", edit_line("alt_text.jsonl", 2, text=" "), "line 2 | the caption is empty"
)
pretraining(
    "alt-text image damaged",
    write("images/1.jpg", ""),
    "images/1.jpg | named by alt_text.jsonl line 3 | damaged image",
)
pretraining("corpus missing", remove("corpus.txt"), "corpus.txt |  | no such file")

everything(
    "training captions of Karpathy's test images",
    edit(
        T,
        lambda c: (
            c["images"].append({"id": 6, "file_name": name_2014(6)}),
            c["annotations"].append({"id": 1000, "image_id": 6, "caption": "a"}),
        ),
    ),
    "images[3] | in the split 'train' and, as images[",
)
everything(
    "POPE on a training image",
    edit_line(P, 2, image=name_2014(1)),
    f"images[0] | line 2 of {Path(P).name}, in 'test'",
    f"dataset_coco.json | images[0] | line 2 of {Path(P).name}, in 'test'",
    f"vqav2/{Q} | questions[0] | line 2 of {Path(P).name}, in 'test'",
)
