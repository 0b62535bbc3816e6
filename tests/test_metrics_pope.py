"""POPE scores against the official rules, written out here once more in the plainest way."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gapinit.cli import app
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.pope import SHARES, score_pope, yes_or_no

CATEGORIES = ("random", "popular", "adversarial")


def plain_no(text: str) -> bool:
    words, word = [], ""
    for letter in text:
        if letter == ".":
            break
        if letter == " ":
            words.append(word)
            word = ""
        elif letter != ",":
            word += letter
    words.append(word)
    return any(word == "No" or word == "not" or word == "no" for word in words)


def plain_metrics(texts: list[str], labels: str) -> dict[str, float]:
    """Return shares in percent, and counts; no share may be of nothing."""
    tp = fp = tn = fn = 0
    for text, label in zip(texts, labels, strict=True):
        if plain_no(text):
            tn, fn = tn + (label == "n"), fn + (label == "y")
        else:
            tp, fp = tp + (label == "y"), fp + (label == "n")
    precision, recall = 100 * tp / (tp + fp), 100 * tp / (tp + fn)
    return {
        "accuracy": 100 * (tp + tn) / len(texts),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_rate": 100 * (tp + fp) / len(texts),
        **{"tp": tp, "fp": fp, "tn": tn, "fn": fn},
    }


def asked(labels: str, first: int = 1) -> list[dict[str, Any]]:
    """Return a question for each letter: y or n is its label."""
    return [
        {
            "question_id": number,
            "image": f"COCO_val2014_{number:012}.jpg",
            "text": f"Is there a thing {number} in the image?",
            "label": {"y": "yes", "n": "no"}[letter],
        }
        for number, letter in enumerate(labels, start=first)
    ]


def said(answers: str, first: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """Return an answer for each letter, with its question's id."""
    texts = {"y": "Yes, there is.", "n": "No, there is not."}
    return [
        {"question_id": number, "answer": texts[letter], **fields}
        for number, letter in enumerate(answers, start=first)
    ]


def without(key: str, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in one.items() if name != key} for one in entries]


def lines(path: Path, entries: list[Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def score(folder: Path, questions: Any, answers: Any) -> dict[str, Any]:
    """Score paths, or entries that are written to files first; returns what is on disk.

    Entries are a list, for one file, or lists by the names of their files.
    """
    if isinstance(questions, list):
        questions = {"q": questions}
    if isinstance(answers, list):
        answers = {"a": answers}
    if isinstance(questions, dict):
        questions = [lines(folder / f"{name}.json", one) for name, one in questions.items()]
    if isinstance(answers, dict):
        answers = [lines(folder / f"{name}.jsonl", one) for name, one in answers.items()]
    returned = score_pope(questions, answers, folder / "s.json")
    assert json.loads((folder / "s.json").read_text(encoding="utf-8")) == returned
    return returned


def refusal(folder: Path, questions: Any, answers: Any) -> str:
    with pytest.raises(GapinitError) as caught:
        score(folder, questions, answers)
    assert not (folder / "s.json").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No", "no"),
        ("There is not one", "no"),
        ("n,o", "no"),  # commas go first
        ("Yes. No.", "yes"),  # the first sentence only
        (".no", "yes"),
        ("NO", "yes"),
        ("No!", "yes"),
        ("no\tcat", "yes"),  # words are parted by spaces only
        ("yes\n no", "no"),
        ("", "yes"),
    ],
)
def test_the_rule_by_hand(text: str, expected: str) -> None:
    assert yes_or_no(text) == expected
    assert plain_no(text) == (expected == "no")


PIECES = ["Yes", "No", "no", "not", "Not", "NO", "there", ",", ".", " ", "  ", "\n", "\xa0"]


class TestMetrics:
    def test_by_hand(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        # Of four yes answers three are right, of six labels yes three are found.
        found = score(tmp_path, asked("yyynyyynnn"), said("yyyynnnnnn"))
        expected = {"accuracy": 60, "precision": 75, "recall": 50, "f1": 60, "yes_rate": 40}
        counts = {"tp": 3, "fp": 1, "tn": 3, "fn": 3}
        assert found["pooled"] == pytest.approx(expected | counts)
        assert found["average"] == pytest.approx(expected)
        assert found["by_file"] == {"q.json": pytest.approx(expected | counts)}
        means = {f"mean_{name}": value for name, value in expected.items()}
        assert found["metrics"] == pytest.approx(expected | counts | means)
        assert found["packages"].keys() == {"gapinit"}
        assert [len(one["sha256"]) for one in found["inputs"]["questions"]] == [64]
        assert found["per_sample"][3] == {
            "question_id": 4,
            "category": "q.json",
            "image": "COCO_val2014_000000000004.jpg",
            "answer": "Yes, there is.",
            "prediction": "yes",
            "label": "no",
            "accuracy": 0,
        }
        assert capsys.readouterr().err == ""

    def test_hundreds_of_answers_equal_the_plain_rules(self, tmp_path: Path) -> None:
        draw = random.Random(7)
        questions, answers, texts, labels = {}, {}, {}, {}
        for name in CATEGORIES:
            labels[name] = "".join(draw.choices("yn", k=draw.randrange(200, 500)))
            texts[name] = ["".join(draw.choices(PIECES, k=draw.randrange(8))) for _ in labels[name]]
            questions[name] = asked(labels[name])
            answers[name] = [
                {"question_id": place, "text": text}
                for place, text in enumerate(texts[name], start=1)
            ]
        found = score(tmp_path, questions, answers)
        plain = {name: plain_metrics(texts[name], labels[name]) for name in CATEGORIES}
        assert found["by_file"] == {name: pytest.approx(plain[name]) for name in CATEGORIES}
        together = plain_metrics(sum(texts.values(), []), "".join(labels.values()))
        assert found["pooled"] == pytest.approx(together)
        for share in SHARES:
            mean = sum(plain[name][share] for name in CATEGORIES) / 3
            assert found["average"][share] == pytest.approx(mean)
            assert found["metrics"][f"mean_{share}"] == pytest.approx(mean)
            assert found["metrics"][share] == found["pooled"][share]
        assert found["pooled"]["precision"] != pytest.approx(found["average"]["precision"])
        assert len(found["per_sample"]) == found["questions"] == sum(map(len, texts.values()))

    @pytest.mark.parametrize(
        ("labels", "answers", "expected", "warned"),
        [
            ("yn", "nn", {"precision": 0, "recall": 0, "f1": 0, "accuracy": 50}, "precision f1"),
            ("nn", "yn", {"precision": 0, "recall": 0, "f1": 0, "accuracy": 50}, "recall f1"),
            ("nn", "nn", {"f1": 0, "accuracy": 100, "yes_rate": 0}, "precision recall f1"),
        ],
    )
    def test_a_share_of_nothing_is_zero_and_told(
        self, tmp_path: Path, capsys: Any, labels: str, answers: str, expected: Any, warned: str
    ) -> None:
        found = score(tmp_path, asked(labels), said(answers))["metrics"]
        assert {name: found[name] for name in expected} == expected
        told = capsys.readouterr().err
        assert re.findall(r"^warning: .*q\.json: (\w+) is set to 0", told, re.M) == warned.split()
        assert len(told.splitlines()) == len(warned.split())


class TestReading:
    QUESTIONS = asked("ynyn")
    ANSWERS = said("yyyn")

    def expected(self, folder: Path) -> dict[str, Any]:
        return score(folder, self.QUESTIONS, self.ANSWERS)["by_file"]["q.json"]

    def test_copies_from_other_systems(self, tmp_path: Path) -> None:
        expected = self.expected(tmp_path)
        for name, entries in (("q.json", self.QUESTIONS), ("a.jsonl", self.ANSWERS)):
            text = "\r\n".join(json.dumps(entry) for entry in entries)
            (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + f"{text}\r\n\r\n \n".encode())
        paths = (tmp_path / "q.json",), (tmp_path / "a.jsonl",)
        assert score(tmp_path, *paths)["by_file"]["q.json"] == expected
        (tmp_path / "q.json").write_text("\n" + json.dumps(self.QUESTIONS, indent=1))
        (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(self.ANSWERS).encode())
        assert score(tmp_path, *paths)["by_file"]["q.json"] == expected

    def test_other_line_ends_are_part_of_a_text(self, tmp_path: Path) -> None:
        texts = ["Yes\u2028no", "yes\x85", "no", "No"]
        path = tmp_path / "a.json"
        entries = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        path.write_text("\n".join(entries), encoding="utf-8")
        found = score(tmp_path, self.QUESTIONS, (path,))
        assert [one["prediction"] for one in found["per_sample"]] == ["yes", "yes", "no", "no"]

    def test_answer_goes_before_text(self, tmp_path: Path) -> None:
        expected = self.expected(tmp_path)
        pope = [{"question": "Is there?", "text": "No", **entry} for entry in self.ANSWERS]
        llava = [
            {"question_id": one["question_id"], "prompt": "?", "text": one["answer"]}
            for one in self.ANSWERS
        ]
        for answers in (pope, llava):
            assert score(tmp_path, self.QUESTIONS, answers)["by_file"]["q.json"] == expected

    def test_labels_in_other_letters_and_files_without_images(self, tmp_path: Path) -> None:
        questions = [{**one, "label": f" {one['label'].upper()} "} for one in self.QUESTIONS]
        found = score(tmp_path, without("image", questions), self.ANSWERS)
        assert found["by_file"]["q.json"] == self.expected(tmp_path)
        assert (found["per_sample"][0]["image"], found["per_sample"][0]["label"]) == (None, "yes")


class TestMatching:
    def test_by_line_or_by_id(self, tmp_path: Path) -> None:
        backwards = [{**one, "question_id": str(one["question_id"])} for one in said("yynn")[::-1]]
        for answers in (without("question_id", said("yynn")), backwards):
            found = score(tmp_path, asked("yynn"), answers)
            assert found["metrics"]["accuracy"] == 100
            assert [one["question_id"] for one in found["per_sample"]] == [1, 2, 3, 4]

    def test_by_line_if_ids_repeat_and_agree(self, tmp_path: Path) -> None:
        questions = [{**one, "question_id": 1} for one in asked("yn")]
        answers = [{**one, "question_id": 1.0} for one in said("yn")]
        assert score(tmp_path, questions, answers)["metrics"]["accuracy"] == 100
        (tmp_path / "s.json").unlink()
        told = refusal(tmp_path, asked("yn") + asked("y"), said("y") + said("yn"))
        assert "with unique ids, found 3 answers" in told

    @pytest.mark.parametrize(
        ("answers", "message"),
        [
            (said("ynn"), r"4 questions, .* 3 answers \(without an answer: '4'; .*question: none"),
            (said("ynnyy"), "5 answers .without an answer: none; without a question: '5'"),
            (said("yynn", first=2), "without an answer: '1'; without a question: '5'"),
            (said("yyn") + said("y"), "without an answer: '4'; without a question: '1'"),
            (without("question_id", said("yyn")), "4 questions, .*, found 3 answers"),
            (
                said("yyn") + without("question_id", said("n")),
                "a.jsonl: line 4: no 'question_id', but other answers",
            ),
            (without("answer", said("yynn")), "a.jsonl: line 1: expected the key 'answer', found"),
            (asked("yynn"), "expected answers, found the questions"),
        ],
    )
    def test_refusals(self, tmp_path: Path, answers: Any, message: str) -> None:
        assert re.search(message, refusal(tmp_path, asked("yynn"), answers))


class TestSeveralFiles:
    QUESTIONS = {"random": asked("yynn"), "popular": asked("yn"), "adversarial": asked("ynnn")}
    ANSWERS = {"random": "yynn", "popular": "yy", "adversarial": "ynny"}
    ACCURACIES = {"random": 100, "popular": 50, "adversarial": 75}

    def check(self, found: dict[str, Any]) -> None:
        by_file = {name: one["accuracy"] for name, one in found["by_file"].items()}
        assert by_file == self.ACCURACIES
        assert found["metrics"]["mean_accuracy"] == found["average"]["accuracy"] == 75
        assert found["metrics"]["accuracy"] == found["pooled"]["accuracy"] == 80
        counted = [one["category"] for one in found["per_sample"]]
        assert counted == ["random"] * 4 + ["popular"] * 2 + ["adversarial"] * 4

    def test_a_file_of_answers_for_each_or_one_for_all(self, tmp_path: Path) -> None:
        answers = {f"a{n}": said(letters) for n, letters in enumerate(self.ANSWERS.values())}
        self.check(score(tmp_path, self.QUESTIONS, answers))
        named = {name: said(letters, category=name) for name, letters in self.ANSWERS.items()}
        self.check(score(tmp_path, self.QUESTIONS, named))
        together = [one for name in CATEGORIES[::-1] for one in named[name]]
        self.check(score(tmp_path, self.QUESTIONS, together))
        self.check(score(tmp_path, self.QUESTIONS, without("question_id", together)))

    @pytest.mark.parametrize(
        ("first", "second", "names"),
        [
            ("coco_pope_Random.json", "x-popular.json", ["random", "popular"]),
            ("coco_random.json", "aokvqa_random.json", ["coco_random.json", "aokvqa_random.json"]),
            ("a.json", "random.json", ["a.json", "random"]),
            ("unpopular.json", "popular.json", ["unpopular.json", "popular"]),
            ("random.json", "x/random.json", ["{0}/random.json", "{0}/x/random.json"]),
        ],
    )
    def test_names_of_files(
        self, tmp_path: Path, first: str, second: str, names: list[str]
    ) -> None:
        (tmp_path / "x").mkdir()
        questions = tuple(lines(tmp_path / name, asked("yn")) for name in (first, second))
        found = score(tmp_path, questions, {"one": said("yn"), "two": said("yy")})["by_file"]
        assert list(found) == [name.format(tmp_path) for name in names]
        assert [one["accuracy"] for one in found.values()] == [100, 50]

    def test_the_same_file_twice(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "q_random.json", asked("yn"))
        told = refusal(tmp_path, (path, path), {"one": said("yn"), "two": said("yn")})
        assert "questions: expected each file once, found" in told

    @pytest.mark.parametrize(
        ("questions", "answers", "message"),
        [
            ("random popular", said("yn"), "a.jsonl: line 1: 'category': expected .* null"),
            (
                "random popular",
                said("yn", category="random") + said("yn", category="adversarial"),
                r"a.jsonl: line 3: .* question files \(random, popular\), found 'adversarial'",
            ),
            ("random x_random", said("yn"), "x_random.json: expected names .* random, random"),
            ("random popular other", {"a": said("yn"), "b": said("yn")}, "expected 1 file, or 3"),
            ("random", {"a": said("yn"), "b": said("yn")}, "expected 1 file.*; found 2"),
            (
                "random popular",
                {"a": said("yn", category="popular"), "b": said("yn", category="random")},
                "a.jsonl: expected answers of category 'random' to .*found 'popular'",
            ),
        ],
    )
    def test_refusals(self, tmp_path: Path, questions: str, answers: Any, message: str) -> None:
        told = refusal(tmp_path, {name: asked("yn") for name in questions.split()}, answers)
        assert re.search(message, told)


class TestRefusals:
    @pytest.mark.parametrize(
        ("question", "answer", "message"),
        [
            ({"label": "maybe"}, {}, "q.json: line 2: 'label': expected yes or no, found 'maybe'"),
            ({"image": 7}, {}, "q.json: line 2: 'image': expected text, found 7"),
            ({}, {"answer": True}, "a.jsonl: line 2: 'answer': expected text, found true"),
            ({}, {"category": 3}, "a.jsonl: line 2: 'category': expected text, found 3"),
            ({}, {"question_id": [2]}, "'question_id': expected a number or text"),
        ],
    )
    def test_entries(self, tmp_path: Path, question: Any, answer: Any, message: str) -> None:
        questions, answers = asked("yn"), said("yn")
        questions[1] |= question
        answers[1] |= answer
        assert re.search(message, refusal(tmp_path, questions, answers))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"[]", "a.json: empty; expected a JSON object on each line"),
            (b'{"answer": "no"}\n{"answer"', "a.json: line 2: not valid JSON"),
            (b'[{"answer": "no"}', "a.json: not valid JSON .*; expected a JSON object on each"),
            (b"[3]", "a.json: entry 0: expected an object, found 3"),
            (b"\xff\xfe{", "a.json: not valid UTF-8"),
            (b"[" * 100_000, "not valid JSON"),
            (None, "a.json: no such file"),
        ],
    )
    def test_files(self, tmp_path: Path, content: bytes | None, message: str) -> None:
        path = tmp_path / "a.json"
        if content is not None:
            path.write_bytes(content)
        assert re.search(message, refusal(tmp_path, asked("yn"), (path,)))


def test_the_command(tmp_path: Path) -> None:
    call = ["score", "pope"]
    for name in CATEGORIES:
        call.append(f"--questions={lines(tmp_path / f'coco_pope_{name}.json', asked('yynn'))}")
    for number, answers in enumerate(("ynnn", "yynn")):
        entries = [one for name in CATEGORIES for one in said(answers, category=name)]
        call.append(f"--predictions={lines(tmp_path / f'a{number}.jsonl', entries)}")
        call.append(f"--output={tmp_path / f's{number}.json'}")
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    found = [json.loads((tmp_path / f"s{number}.json").read_text())["metrics"] for number in (0, 1)]
    assert (found[0]["mean_recall"], found[0]["accuracy"], found[0]["tn"]) == (50, 75, 6)
    assert found[1]["accuracy"] == 100
