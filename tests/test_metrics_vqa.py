"""VQA accuracy against the official rules, written out here once more in the plainest way."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gapinit.cli import app
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.vqa import score_vqa, vqa_accuracy
from gapinit.evaluate.metrics.vqa_answers import CONTRACTIONS, normalise_answer

# The official table, written in pairs: what is met, what is put for it.
TABLE = """
aint ain't arent aren't cant can't couldve could've couldnt couldn't couldn'tve couldn't've
couldnt've couldn't've didnt didn't doesnt doesn't dont don't hadnt hadn't hadnt've hadn't've
hadn'tve hadn't've hasnt hasn't havent haven't hed he'd hed've he'd've he'dve he'd've hes he's
howd how'd howll how'll hows how's Id've I'd've I'dve I'd've Im I'm Ive I've isnt isn't itd it'd
itd've it'd've it'dve it'd've itll it'll let's let's maam ma'am mightnt mightn't
mightnt've mightn't've mightn'tve mightn't've mightve might've mustnt mustn't mustve must've
neednt needn't notve not've oclock o'clock oughtnt oughtn't ow's'at 'ow's'at 'ows'at 'ow's'at
'ow'sat 'ow's'at shant shan't shed've she'd've she'dve she'd've she's she's shouldve should've
shouldnt shouldn't shouldnt've shouldn't've shouldn'tve shouldn't've somebody'd somebodyd
somebodyd've somebody'd've somebody'dve somebody'd've somebodyll somebody'll somebodys somebody's
someoned someone'd someoned've someone'd've someone'dve someone'd've someonell someone'll
someones someone's somethingd something'd somethingd've something'd've something'dve something'd've
somethingll something'll thats that's thered there'd thered've there'd've there'dve there'd've
therere there're theres there's theyd they'd theyd've they'd've they'dve they'd've theyll they'll
theyre they're theyve they've twas 'twas wasnt wasn't wed've we'd've we'dve we'd've weve we've
werent weren't whatll what'll whatre what're whats what's whatve what've whens when's whered where'd
wheres where's whereve where've whod who'd whod've who'd've who'dve who'd've wholl who'll whos who's
whove who've whyll why'll whyre why're whys why's wont won't wouldve would've wouldnt wouldn't
wouldnt've wouldn't've wouldn'tve wouldn't've yall y'all yall'll y'all'll y'allll y'all'll
yall'd've y'all'd've y'alld've y'all'd've y'all'dve y'all'd've youd you'd youd've you'd've
you'dve you'd've youll you'll youre you're youve you've
"""
PAIRS = dict(zip(TABLE.split()[::2], TABLE.split()[1::2], strict=True))
DIGITS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
DIGITS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`"]
MARKS += [",", "?", "!"]


def plain_normal(text: str) -> str:
    """Follow the rules letter by letter."""
    number_with_comma = False
    for place in range(1, len(text) - 1):
        before, letter, after = text[place - 1 : place + 2]
        if letter == "," and re.fullmatch(r"\d", before) and re.fullmatch(r"\d", after):
            number_with_comma = True
    marked = text
    for mark in MARKS:
        if mark + " " in text or " " + mark in text or number_with_comma:
            marked = "".join(letter for letter in marked if letter != mark)
        else:
            marked = "".join(" " if letter == mark else letter for letter in marked)
    kept, removed = "", 0
    for place, letter in enumerate(marked):
        after = marked[place + 1 : place + 2]
        if letter == "." and not re.fullmatch(r"\d", after) and removed < 32:
            removed += 1
        else:
            kept += letter
    words = []
    for word in kept.lower().split():
        if word in DIGITS:
            word = DIGITS[word]
        if word not in ("a", "an", "the"):
            words.append(word)
    return " ".join(PAIRS.get(word, word) for word in words)


def plain_accuracy(answers: list[dict[str, Any]], prediction: str) -> float:
    """Return the accuracy in percent: each annotator is left out once."""

    def stripped(text: str) -> str:
        return text.replace("\n", " ").replace("\t", " ").strip()

    given, said = [stripped(answer["answer"]) for answer in answers], stripped(prediction)
    if len(set(given)) > 1:
        given, said = [plain_normal(answer) for answer in given], plain_normal(said)
    verdicts = []
    for place in range(len(given)):
        others = given[:place] + given[place + 1 :]
        matching = [answer for answer in others if answer == said]
        verdicts.append(min(1, len(matching) / 3))
    return 100 * sum(verdicts) / len(verdicts)


def annotation(question: Any, answers: list[str], **fields: Any) -> dict[str, Any]:
    listed = [
        {"answer": answer, "answer_confidence": "yes", "answer_id": number}
        for number, answer in enumerate(answers, start=1)
    ]
    entry = {"question_id": question, "image_id": 7, "question_type": "what", "answers": listed}
    return entry | {"answer_type": "other", "multiple_choice_answer": answers[0]} | fields


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def files(
    folder: Path, annotations: Any, predictions: Any, questions: Any = None, **top: Any
) -> dict[str, Path]:
    """Write the three files; unless given, the questions are those of the annotations."""
    if questions is None:
        questions = [
            {"question_id": one["question_id"], "image_id": one["image_id"], "question": "What?"}
            for one in annotations
        ]
    if isinstance(predictions, dict):
        predictions = [{"question_id": key, "answer": said} for key, said in predictions.items()]
    return {
        "questions": write(folder / "q.json", {"questions": questions, "task_type": "Open-Ended"}),
        "annotations": write(folder / "a.json", {"annotations": annotations, **top}),
        "predictions": write(folder / "p.json", predictions),
    }


def score(folder: Path, annotations: Any, predictions: Any, **options: Any) -> dict[str, Any]:
    """Write the files and score them; what is returned is what is on disk."""
    field = options.pop("field", "answer")
    paths = files(folder, annotations, predictions, **options)
    returned = score_vqa(**paths, output=folder / "s.json", answers=field)
    on_disk = json.loads((folder / "s.json").read_text(encoding="utf-8"))
    assert on_disk == returned
    return on_disk


def refusal(folder: Path, annotations: Any, predictions: Any, **options: Any) -> str:
    with pytest.raises(GapinitError) as caught:
        score(folder, annotations, predictions, **options)
    assert not (folder / "s.json").exists()
    return str(caught.value)


class TestNormalisation:
    def test_the_table_of_contractions_is_the_official_one(self) -> None:
        assert CONTRACTIONS == PAIRS

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("The Red, white; blue", "red white blue"),
            ("red/white", "red white"),  # no space beside the mark: a space for it
            ("red/white /blue", "redwhite blue"),  # a space beside one of them: all go
            ("1,000 red/white", "1000 redwhite"),  # a comma in a number: all marks go
            ("a,b", "b"),
            ("3.5.", "3.5"),
            ("5 p.m.", "5 pm"),
            ("<=3.x", "3x"),  # the slip in the official expression forbids nothing
            (".5", ".5"),
            ("None of ten", "0 of 10"),
            ("Dont", "don't"),
            ("somebody'd", "somebodyd"),
            ("IM here", "im here"),  # "Im" has a capital and is never met
            ("yall'd've an 'ows'at", "y'all'd've 'ow's'at"),
            ("don't!", "don't"),
            ("the", ""),
            ("", ""),
            ("." * 40 + "x", "." * 8 + "x"),  # 32 periods go, the others stay
        ],
    )
    def test_worked_out_by_hand(self, text: str, expected: str) -> None:
        assert normalise_answer(text) == expected
        assert plain_normal(text) == expected

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.sampled_from([*MARKS, " ", "  ", ".", "..", "1,2", "3", "\u0663,\u0664", "\n"]),
                st.sampled_from(["a", "The", "ten", "None", "cat", *PAIRS]),
                st.text(max_size=3),
            ),
            max_size=12,
        ).map("".join)
    )
    def test_equals_the_plain_rules(self, text: str) -> None:
        assert normalise_answer(text) == plain_normal(text)


class TestAccuracy:
    @pytest.mark.parametrize(
        ("agreeing", "expected"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (9, 100)]
    )
    def test_of_ten_annotators_by_hand(self, agreeing: int, expected: float) -> None:
        # Three agree: seven of them see 3 of the others agree (1), three see 2 (2/3).
        answers = ["cat"] * agreeing + [f"dog{number}" for number in range(10 - agreeing)]
        assert 100 * vqa_accuracy(answers, " The cat!") == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("answers", "prediction", "expected"),
        [
            (["yes"] * 9 + ["yes\t"], " yes\n", 1),
            (["red\ncar"] * 9 + ["red car"], "red\tcar", 1),
            # Unanimous answers are compared as they are, others normalised.
            (["yes"] * 10, "Yes", 0),
            (["Yes."] * 10, "Yes.", 1),
            (["yes"] * 9 + ["Yes"], "Yes", 1),
            # Other numbers of annotators.
            (["cat", "cat"], "cat", 1 / 3),
            (["cat", "cat", "dog"], "cat", (1 / 3 + 1 / 3 + 2 / 3) / 3),
        ],
    )
    def test_of_other_answers_by_hand(
        self, answers: list[str], prediction: str, expected: float
    ) -> None:
        assert vqa_accuracy(answers, prediction) == pytest.approx(expected)

    def test_a_thousand_questions_equal_the_plain_rules(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        draw = random.Random(3)
        pieces = ["cat", "Cat", "the cat", "cat.", "a-cat", "2", "two", "1,000", "1000", "1, 000"]
        pieces += ["dont", "don't", "Dont", "no", "yes", "Yes", "." * 34 + "x", "..x", "x", ""]
        pieces += ["somebody'd", "somebodyd", "red/white", "red white", "red / white", "yes\n\t"]

        def text() -> str:
            return " ".join(draw.choices(pieces, k=draw.choice([1, 1, 1, 2])))

        annotations, said = [], {}
        for question in range(1000):
            pool = [text() for _ in range(draw.choice([1, 2, 3, 6]))]
            number = draw.choice([10, 10, 10, 10, 1, 2, 4])
            kind = draw.choice(["yes/no", "other"])
            annotations.append(annotation(question, draw.choices(pool, k=number), answer_type=kind))
            said[question] = draw.choice([*pool, text()])
        found = score(tmp_path, annotations, said)
        expected = [plain_accuracy(one["answers"], said[one["question_id"]]) for one in annotations]
        assert [one["accuracy"] for one in found["per_sample"]] == pytest.approx(expected, abs=1e-9)
        assert found["metrics"]["accuracy"] == pytest.approx(sum(expected) / 1000, abs=1e-9)
        assert 20 < found["metrics"]["accuracy"] < 80
        for name in ("yes/no", "other"):
            pairs = zip(annotations, expected, strict=True)
            of_type = [value for entry, value in pairs if entry["answer_type"] == name]
            assert found["by_answer_type"][name] == pytest.approx(sum(of_type) / len(of_type))
        other = sum(len(one["answers"]) != 10 for one in annotations)
        told = f"{other} of 1000 questions do not have 10 answers (question "
        assert told in capsys.readouterr().err


class TestFiles:
    def test_what_is_written(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        annotations = [
            annotation(2, ["cat"] * 3 + ["dog"] * 7, question_type="what"),
            annotation(1, ["yes"] * 10, question_type="is", answer_type="yes/no", image_id="x"),
            annotation(3, ["red"] * 10, question_type="what"),
        ]
        found = score(tmp_path, annotations, {1: "no", 2: " A Cat", 3: "red"})
        assert found["metrics"] == {"accuracy": pytest.approx(190 / 3)}
        assert found["by_answer_type"] == {"other": pytest.approx(95), "yes/no": 0}
        assert found["by_question_type"] == {"is": 0, "what": pytest.approx(95)}
        assert (found["questions"], found["answers"]) == (3, "answer")
        assert set(found["inputs"]) == {"questions", "annotations", "predictions"}
        assert all(len(one["sha256"]) == 64 for one in found["inputs"].values())
        assert found["packages"].keys() == {"gapinit"}
        assert found["per_sample"][0] == {
            "question_id": 2,
            "image_id": 7,
            "answer": " A Cat",
            "accuracy": pytest.approx(90),
            "answer_type": "other",
            "question_type": "what",
        }
        assert [one["question_id"] for one in found["per_sample"]] == [2, 1, 3]
        assert capsys.readouterr().err == ""

    def test_ok_vqa(self, tmp_path: Path) -> None:
        one = annotation(1, ["race"] * 5 + ["run"] * 5, question_type="one")
        two = annotation(2, ["pony"] * 10, question_type="elsewhere")
        for entry in (one, two):
            del entry["multiple_choice_answer"]
            for answer in entry["answers"]:
                answer["raw_answer"] = {"race": "racing", "run": "running", "pony": "ponies"}[
                    answer["answer"]
                ]
        names = {"one": "Vehicles and Transportation", "two": "Brands"}
        said = {1: "racing", 2: "pony"}
        stemmed = score(tmp_path, [one, two], said, question_types=names)
        assert stemmed["by_question_type"] == {names["one"]: 0, "elsewhere": 100}
        raw = score(tmp_path, [one, two], said, question_types=names, field="raw_answer")
        assert raw["by_question_type"] == {names["one"]: 100, "elsewhere": 0}
        assert raw["answers"] == "raw_answer"
        unnamed = score(tmp_path, [one, two], said)
        assert unnamed["by_question_type"] == {"one": 0, "elsewhere": 100}

    def test_ids_of_other_types(self, tmp_path: Path) -> None:
        annotations = [annotation(1, ["yes"] * 10), annotation(2, ["no"] * 10)]
        questions = [{"question_id": str(key), "image_id": "7"} for key in (3, 2, 1)]
        said = [{"question_id": 2.0, "answer": "no"}, {"question_id": "1", "answer": "no"}]
        found = score(tmp_path, annotations, said, questions=questions)
        assert [one["accuracy"] for one in found["per_sample"]] == [0, 100]
        both = [annotation(1, ["yes"] * 10), annotation("1", ["no"] * 10)]
        found = score(tmp_path, both, {"1": "no", 1: "yes"})
        assert found["metrics"]["accuracy"] == 100, "an id of the same type goes first"

    def test_questions_without_annotation_are_not_scored(self, tmp_path: Path) -> None:
        questions = [{"question_id": key, "image_id": 7} for key in (1, 2, 3)]
        said = {3: "no", 2: "no", 1: "yes"}
        found = score(tmp_path, [annotation(1, ["yes"] * 10)], said, questions=questions)
        assert found["metrics"]["accuracy"] == 100
        assert (found["questions"], found["predictions_without_annotation"]) == (1, 2)


ONE = [annotation(1, ["yes"] * 10), annotation(2, ["no"] * 10)]
BOTH = {1: "yes", 2: "no"}


def changed(**fields: Any) -> list[dict[str, Any]]:
    return [{**ONE[0], **fields}, ONE[1]]


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({1: "yes"}, "p.json: 1 of the 2 questions of .*a.json have no answer .such as 2.*"),
        ({}, "p.json: expected predictions"),
        (BOTH | {9: "no"}, r"p.json: entry 2 \(question_id 9\): not in .*q.json.*such as 1, 2"),
        (BOTH | {"1": "no"}, r"p.json: entry 2 \(question_id '1'\): a second prediction"),
        ({1: "yes", 2: 3}, r"p.json: entry 1 \(question_id 2\): 'answer': expected text, found 3"),
        ([{"question_id": 1, "text": "x"}], "entry 0 .*expected the key 'answer', found 'que"),
        ([{"id": 1}], "p.json: entry 0: expected the key 'question_id', found 'id'"),
        ("yes", "p.json: expected a list .*, found 'yes'"),
    ],
)
def test_wrong_predictions(tmp_path: Path, predictions: Any, message: str) -> None:
    assert re.search(message, refusal(tmp_path, ONE, predictions))


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([], "a.json: expected annotations"),
        ([*ONE, ONE[0]], r"annotations\[2\] \(question 1\): a second annotation"),
        (changed(answers=[]), r"\[0\] \(question 1\): 'answers': expected .*, found none"),
        (changed(answers="yes"), "'answers': expected a list, found 'yes'"),
        (changed(answers=["yes"]), r"answers\[0\]: expected an object, found 'yes'"),
        (changed(answers=[{"answer": 3}]), r"answers\[0\]: 'answer': expected text, found 3"),
        (changed(answer_type=None), "'answer_type': expected text, found null"),
    ],
)
def test_wrong_annotations(tmp_path: Path, annotations: Any, message: str) -> None:
    questions = [{"question_id": key, "image_id": 7} for key in (1, 2)]
    assert re.search(message, refusal(tmp_path, annotations, BOTH, questions=questions))


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([{"question_id": 1, "image_id": 7}], r"annotations\[1\] \(question 2\): not in .*q.json"),
        ([{"question_id": k, "image_id": 8} for k in (1, 2)], "image 7, but image 8"),
        ([{"question_id": 1, "image_id": 7}] * 2, r"questions\[1\]: question 1 is repeated"),
        ([{"question_id": 1}], r"questions\[0\]: expected the key 'image_id'"),
        ({}, "q.json: 'questions': expected a list, found an object"),
    ],
)
def test_wrong_questions(tmp_path: Path, questions: Any, message: str) -> None:
    assert re.search(message, refusal(tmp_path, ONE, {1: "yes"}, questions=questions))


def test_a_field_that_is_not_there(tmp_path: Path) -> None:
    told = refusal(tmp_path, ONE, BOTH, field="raw_answer")
    assert "answers[0]: expected the key 'raw_answer', found 'answer'" in told
    assert "expected answer or raw_answer, found 'x'" in refusal(tmp_path, ONE, BOTH, field="x")


def test_the_command(tmp_path: Path) -> None:
    options = [
        f"--{name}={path}" for name, path in files(tmp_path, ONE, {1: "yes", 2: "yes"}).items()
    ]
    call = ["score", "vqa", *options, f"--output={tmp_path / 's.json'}"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "s.json").read_text())["metrics"] == {"accuracy": 50}
