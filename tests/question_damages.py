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
    remove("train2014/COCO_train2014_000000000002.jpg"),
    "questions[2] | names the image COCO_{train,val}2014_000000000002.jpg",
)
questions_file(
    write("train2014/COCO_train2014_000000000002.jpg", "x"),
    f"train2014/COCO_train2014_000000000002.jpg | named by {Q} questions[2] | damaged",
)
questions_file(
    question(1, question_id=10),
    "questions[1] | duplicate question id 10, already used by questions[0]",
)
questions_file(
    without(Q, "questions", 1, "question_id"), "questions[1] | the key 'question_id' is missing"
)
questions_file(
    edit(A, lambda c: c["annotations"].pop(1)),
    f"questions[1] | question 11 has no annotation in {A}",
)
answers_file(
    edit(Q, lambda c: c["questions"].pop(1)), f"annotations[1] | question 11 has no question in {Q}"
)
questions_file(question(1, question_id="x"), "questions[1] | 'question_id': expected a whole")
questions_file(question(1, image_id=None), "questions[1] | 'image_id': expected a whole number")
questions_file(
    annotation(1, question_id=5),
    f"questions[1] | question 11 has no annotation in {A}",
    f"{A} | annotations[1] | question 5 has no question in {Q}",
)
questions_file(question(1, question="  "), "questions[1] | 'question': the question is empty")
questions_file(
    question(1, question=None), "questions[1] | 'question': expected a string, found null"
)
answers_file(
    annotation(1, image_id=2), "annotations[1] | 'image_id': 2, but its question, questions[1] of"
)
answers_file(annotation(1, question_id=10), "annotations[1] | duplicate question id 10")
answers_file(
    annotation(1, question_type=None, answer_type=3, multiple_choice_answer=[]),
    "annotations[1] | 'question_type': expected a string, found null",
    "annotations[1] | 'answer_type': expected a string, found 3",
    "annotations[1] | 'multiple_choice_answer': expected a string, found a list of 0",
)
answers_file(annotation(1, answers="x"), "annotations[1] | 'answers': expected a list")
answers_file(answers(lambda given: given.pop()), "annotations[1] | expected 10 answers, found 9")
answers_file(
    answers(lambda given: given.append(given[0])), "annotations[1] | expected 10 answers, found 11"
)
answers_file(answers(lambda given: given.clear()), "annotations[1] | expected 10 answers, found 0")
answers_file(
    answers(lambda given: given[3].update(answer="\n")),
    "annotations[1].answers[3] | 'answer': the answer is empty",
)
answers_file(
    answers(lambda given: given[3].update(answer=3)),
    "annotations[1].answers[3] | 'answer': expected a string, found 3",
)
answers_file(
    answers(lambda given: given.__setitem__(3, "noise")),
    "annotations[1].answers[3] | expected an object, found 'noise'",
)
answers_file(
    without(A, "annotations", 1, "answer_type"), "annotations[1] | the key 'answer_type' is missing"
)
questions_file(
    lambda root: (
        edit(Q, lambda c: c.update(questions=[]))(root),
        edit(A, lambda c: c.update(annotations=[]))(root),
    ),
    " | has no questions",
)
questions_file(remove(A), f" | no file has the annotations of these questions (expected {A})")
answers_file(remove(Q), " | no file has the questions of these annotations")
answers_file(truncate(A), " | not valid JSON")
questions_file(truncate(Q), " | not valid JSON")
questions_file(
    edit(Q, lambda c: c.update(items=c.pop("questions"))),
    " | expected the key 'questions' at the top level",
)
questions_file(
    lambda root: (question(1, image_id=6)(root), annotation(1, image_id=6)(root)),
    f"questions[1] | in the split 'train' and, as questions[0] of {VQA_VAL}, in 'val'",
)
okvqa(
    edit(OK, lambda c: c["annotations"][1]["answers"][3].update(raw_answer="")),
    "annotations[1].answers[3] | 'raw_answer'",
)

pope(
    edit_line(P, 2, label="maybe"),
    "line 2 | 'label': expected one of yes, no, found 'maybe' (question_id 2)",
)
pope(edit_line(P, 2, label=None), "line 2 | the key 'label' is missing")
pope(edit_line(P, 2, label=True), "line 2 | 'label': expected a string, found true")
pope(edit_line(P, 2, question_id="1"), "line 2 | 'question_id': expected a whole number")
pope(edit_line(P, 2, image=""), "line 2 | 'image': expected a file name, found ''")
pope(edit_line(P, 2, question_id=1), "line 2 | duplicate question id 1, already used by line 1")
pope(edit_line(P, 2, text=""), "line 2 | 'text': the question is empty")
pope(
    edit_line(P, 2, image="COCO_val2014_000000000099.jpg"),
    "line 2 | names the image 'COCO_val2014_000000000099.jpg'",
)
pope(edit_line(P, 2, image="../../x.jpg"), "line 2 | leaves the image root")
pope(
    lambda root: (root / P).write_text((root / P).read_text().replace("{", "", 1)),
    "line 1 | not valid JSON",
)
pope(write(P, "\n"), " | has no questions")
pope(
    write(P, '[{"question_id": 1,\n "label": "yes"}]'),
    " | expected one JSON object per line, found",
)


def said(number: int, change: Callable[[list[Any]], object]) -> Change:
    return edit(LLAVA, lambda content: change(content[number]["conversations"]))


llava(
    said(1, lambda turns: turns.reverse()),
    "[1].conversations[0] | expected 'human' in this turn, found 'gpt'",
)
llava(
    said(0, lambda turns: turns.pop(1)),
    "[0].conversations[1] | expected 'gpt' in this turn, found 'human'",
)
llava(said(1, lambda turns: turns.pop()), "[1].conversations[0] | ends without an answer")
llava(said(1, lambda turns: turns.clear()), "[1] | the conversation is empty")
llava(
    said(1, lambda turns: turns[1].update({"from": "bard"})),
    "[1].conversations[1] | expected 'gpt' in this turn, found 'bard'",
)
llava(
    said(1, lambda turns: turns[0].update(value="<image>\n ")),
    "[1].conversations[0] | 'value': the text is empty",
)
llava(
    said(1, lambda turns: turns[1].update(value=1)),
    "[1].conversations[1] | 'value': expected a string, found 1",
)
llava(said(1, lambda t: t.__setitem__(1, 5)), "[1].conversations[1] | expected an object")
llava(said(1, lambda t: t[1].pop("value")), "[1].conversations[1] | the key 'value' is missing")
llava(edit(L, lambda c: c[1].update(conversations={})), "[1] | 'conversations': expected a list")
llava(edit(L, lambda c: c[1].update(id=True)), "[1] | 'id': expected a string, found true")
llava(edit(L, lambda c: c[1].update(id=2**70)), "[1] | 'id': expected a number of at most 64")
llava(edit(L, lambda c: c[1].pop("image")), "[1] | the key 'image' is missing (id '000000000001')")
llava(edit(L, lambda c: c[1].update(image="no.jpg")), "[1] | names the image 'no.jpg'")
llava(edit(L, lambda c: c[1].update(image="../no.jpg")), "[1] | leaves the image root")
llava(edit(L, lambda c: c.append(c[1])), "[6] | the same image and conversation as [1]")
llava(edit(L, lambda c: c.append(3)), "[6] | expected an object, found 3")
llava(write(L, "[]"), " | has no conversations")
llava(write(L, '{"a": 1}'), " | expected a list at the")

pretraining(edit_line("alt_text.jsonl", 2, text=" "), "line 2 | the caption is empty")
pretraining(edit_line("alt_text.jsonl", 2, text=None), "line 2 | the key 'text' is missing")
pretraining(edit_line("alt_text.jsonl", 2, image="b.png"), "line 2 | names the image 'b.png'")
pretraining(edit_line("alt_text.jsonl", 2, image="../a.png"), "line 2 | '../a.png' leaves")
pretraining(write("corpus.txt", "\n \n"), "corpus.txt |  | expected at least 1 line, found none")
pretraining(
    write("images/1.jpg", ""), "images/1.jpg | named by alt_text.jsonl line 3 | damaged image"
)
pretraining(remove("corpus.txt"), "corpus.txt |  | no such file")

everything(
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
    edit_line(P, 2, image=name_2014(1)),
    f"images[0] | line 2 of {Path(P).name}, in 'test'",
    f"dataset_coco.json | images[0] | line 2 of {Path(P).name}, in 'test'",
    f"vqav2/{Q} | questions[0] | line 2 of {Path(P).name}, in 'test'",
)
