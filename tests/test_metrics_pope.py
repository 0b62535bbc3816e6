"""POPE scores against the official rules, written out here once more in the plainest way."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.pope import SHARES, score_pope, yes_or_no

CATEGORIES = ("random", "popular", "adversarial")


def plain_no(text: str) -> bool:
    """Follow POPE's rule letter by letter."""
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


def plain_metrics(texts: list[str], labels: list[str]) -> dict[str, float]:
    """Return shares, as fractions, and counts; nothing may be of nothing."""
    tp = fp = tn = fn = 0
    for text, label in zip(texts, labels, strict=True):
        if plain_no(text):
            tn, fn = tn + (label == "no"), fn + (label == "yes")
        else:
            tp, fp = tp + (label == "yes"), fp + (label == "no")
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": (tp + tn) / len(texts),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_rate": (tp + fp) / len(texts),
        **{"tp": tp / 100, "fp": fp / 100, "tn": tn / 100, "fn": fn / 100},
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
    """Score files, or lists that are written to files first; returns what is on disk."""
    if isinstance(questions, list):
        questions = [lines(folder / "q.json", questions)]
    elif isinstance(questions, dict):
        questions = [lines(folder / f"q_{name}.json", one) for name, one in questions.items()]
    if isinstance(answers, list):
        answers = [lines(folder / "a.jsonl", answers)]
    elif isinstance(answers, dict):
        answers = [lines(folder / f"{name}.jsonl", one) for name, one in answers.items()]
    output = folder / "s.json"
    returned = score_pope(questions, answers, output)
    on_disk = json.loads(output.read_text(encoding="utf-8"))
    assert on_disk == returned
    return on_disk


def refusal(folder: Path, questions: Any, answers: Any) -> str:
    with pytest.raises(GapinitError) as caught:
        score(folder, questions, answers)
    assert not (folder / "s.json").exists()
    return str(caught.value)


class TestRule:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("No", "no"),
            ("no, there is none", "no"),
            ("There is not one", "no"),
            ("n,o", "no"),  # commas go first
            ("Yes. No.", "yes"),  # the first sentence only
            (".no", "yes"),
            ("No.", "no"),
            ("NO", "yes"),
            ("none", "yes"),
            ("No!", "yes"),
            ("no\tcat", "yes"),  # words are parted by spaces only
            ("yes\nno", "yes"),
            ("yes\n no", "no"),
            ("", "yes"),
        ],
    )
    def test_by_hand(self, text: str, expected: str) -> None:
        assert yes_or_no(text) == expected
        assert plain_no(text) == (expected == "no")

    @settings(max_examples=1000, deadline=None)
    @given(
        st.lists(
            st.sampled_from(["No", "no", "not", "Not", "yes", ",", ".", " ", "  ", "\n", "\xa0"]),
            max_size=8,
        ).map("".join)
    )
    def test_equals_the_plain_rule(self, text: str) -> None:
        assert yes_or_no(text) == ("no" if plain_no(text) else "yes")


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
        assert found["questions"] == 10
        assert found["packages"].keys() == {"gapinit"}
        assert [one["file"] for one in found["inputs"]["questions"]] == ["q.json"]
        assert [len(one["sha256"]) for one in found["inputs"]["predictions"]] == [64]
        assert found["per_sample"][3] == {
            "question_id": 4,
            "category": "q.json",
            "image": "COCO_val2014_000000000004.jpg",
            "answer": "Yes, there is.",
            "prediction": "yes",
            "label": "no",
            "accuracy": 0,
        }
        assert sum(one["accuracy"] for one in found["per_sample"]) == 600
        assert capsys.readouterr().err == ""

    def test_thousands_of_answers_equal_the_plain_rules(self, tmp_path: Path) -> None:
        draw = random.Random(7)
        pieces = ["Yes", "No", "no", "not", "Not", "yes,", "no,", ".", "there", "is", "NO", "\n"]
        questions, answers, texts, labels = {}, {}, {}, {}
        for name in CATEGORIES:
            number = draw.randrange(500, 1500)
            labels[name] = draw.choices(["yes", "no"], k=number)
            texts[name] = [
                draw.choice([" ", "  ", ""]).join(draw.choices(pieces, k=draw.randrange(1, 5)))
                for _ in range(number)
            ]
            questions[name] = asked("".join(label[0] for label in labels[name]))
            answers[name] = [
                {"question_id": place, "text": text}
                for place, text in enumerate(texts[name], start=1)
            ]
        found = score(tmp_path, questions, answers)
        plain = {name: plain_metrics(texts[name], labels[name]) for name in CATEGORIES}
        for name in CATEGORIES:
            expected = {key: 100 * value for key, value in plain[name].items()}
            assert found["by_file"][name] == pytest.approx(expected)
        together = plain_metrics(sum(texts.values(), []), sum(labels.values(), []))
        assert found["pooled"] == pytest.approx({k: 100 * v for k, v in together.items()})
        for share in SHARES:
            mean = 100 * sum(plain[name][share] for name in CATEGORIES) / 3
            assert found["average"][share] == pytest.approx(mean)
            assert found["metrics"][f"mean_{share}"] == pytest.approx(mean)
            assert found["metrics"][share] == found["pooled"][share]
        assert found["pooled"]["precision"] != pytest.approx(found["average"]["precision"])
        assert len(found["per_sample"]) == found["questions"] == sum(map(len, texts.values()))
        assert {one["category"] for one in found["per_sample"]} == set(CATEGORIES)

    @pytest.mark.parametrize(
        ("labels", "answers", "expected", "warned"),
        [
            ("yn", "nn", {"precision": 0, "recall": 0, "f1": 0, "accuracy": 50}, "precision f1"),
            ("nn", "yn", {"precision": 0, "recall": 0, "f1": 0, "accuracy": 50}, "recall f1"),
            ("nn", "nn", {"f1": 0, "accuracy": 100, "yes_rate": 0}, "precision recall f1"),
            ("yn", "ny", {"precision": 0, "recall": 0, "f1": 0, "yes_rate": 50}, "f1"),
            ("yy", "yy", {"precision": 100, "recall": 100, "f1": 100, "yes_rate": 100}, ""),
        ],
    )
    def test_a_share_of_nothing_is_zero_and_told(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        labels: str,
        answers: str,
        expected: dict[str, float],
        warned: str,
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
        found = score(tmp_path, (tmp_path / "q.json",), (tmp_path / "a.jsonl",))
        assert found["by_file"]["q.json"] == expected

    def test_json_lists(self, tmp_path: Path) -> None:
        expected = self.expected(tmp_path)
        (tmp_path / "q.json").write_text("\n" + json.dumps(self.QUESTIONS, indent=1))
        (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(self.ANSWERS).encode())
        # One path alone is as good as a list of one.
        found = score_pope(tmp_path / "q.json", tmp_path / "a.json", tmp_path / "s.json")
        assert found["by_file"]["q.json"] == expected

    def test_other_line_ends_within_a_text_part_nothing(self, tmp_path: Path) -> None:
        lines(tmp_path / "q.json", self.QUESTIONS)
        texts = ["Yes\u2028no", "yes\x85", "no", "No"]
        entries = [{"question_id": n, "text": text} for n, text in enumerate(texts, start=1)]
        (tmp_path / "a.json").write_text(
            "\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries), encoding="utf-8"
        )
        found = score(tmp_path, (tmp_path / "q.json",), (tmp_path / "a.json",))
        assert [one["prediction"] for one in found["per_sample"]] == ["yes", "yes", "no", "no"]

    def test_answer_goes_before_text(self, tmp_path: Path) -> None:
        pope = [
            {"question": "Is there?", "text": "No", **entry} for entry in self.ANSWERS
        ]  # `text` would be "No" throughout
        assert score(tmp_path, self.QUESTIONS, pope)["by_file"]["q.json"] == self.expected(tmp_path)
        llava = [
            {"question_id": one["question_id"], "prompt": "?", "text": one["answer"]}
            for one in self.ANSWERS
        ]
        found = score(tmp_path, self.QUESTIONS, llava)
        assert found["by_file"]["q.json"] == self.expected(tmp_path)

    def test_labels_in_other_letters_and_files_without_images(self, tmp_path: Path) -> None:
        questions = [{**one, "label": f" {one['label'].upper()} "} for one in self.QUESTIONS]
        found = score(tmp_path, without("image", questions), self.ANSWERS)
        assert found["by_file"]["q.json"] == self.expected(tmp_path)
        assert found["per_sample"][0]["image"] is None
        assert found["per_sample"][0]["label"] == "yes"


class TestMatching:
    def test_by_line_if_no_answer_has_an_id(self, tmp_path: Path) -> None:
        found = score(tmp_path, asked("yynn"), without("question_id", said("yynn")))
        assert found["metrics"]["accuracy"] == 100

    def test_by_id_in_any_order(self, tmp_path: Path) -> None:
        answers = [{**one, "question_id": str(one["question_id"])} for one in said("yynn")]
        found = score(tmp_path, asked("yynn"), answers[::-1])
        assert found["metrics"]["accuracy"] == 100
        assert [one["question_id"] for one in found["per_sample"]] == [1, 2, 3, 4]

    def test_by_line_if_ids_repeat_and_agree(self, tmp_path: Path) -> None:
        questions = [{**one, "question_id": 1} for one in asked("yn")]
        answers = [{**one, "question_id": 1.0} for one in said("yn")]
        assert score(tmp_path, questions, answers)["metrics"]["accuracy"] == 100

    @pytest.mark.parametrize(
        ("answers", "message"),
        [
            (said("ynn"), "of 4 questions, found 3 answers; without an answer: 1 .question_id '4'"),
            (said("ynnyy"), r"of 4 questions, found 5 answers; unknown: 1 \(question_id '5'\)"),
            (said("yynn", first=2), "without an answer: 1 .*'1'.*unknown: 1 .*'5'"),
            (said("yyn") + said("y"), "without an answer: 1 .*'4'.*twice among the answers: .*'1'"),
            (without("question_id", said("yyn")), r"of 4 questions, found 3 answers\. Are these"),
            (
                said("yyn") + without("question_id", said("n")),
                "a.jsonl: line 4: no 'question_id', which other answers have",
            ),
            (asked("yynn"), "found the questions themselves, expected answers"),
        ],
    )
    def test_refusals(self, tmp_path: Path, answers: Any, message: str) -> None:
        assert re.search(message, refusal(tmp_path, asked("yynn"), answers))

    def test_ids_that_repeat_in_another_order(self, tmp_path: Path) -> None:
        questions = asked("yn") + asked("y")
        told = refusal(tmp_path, questions, [questions[n] | {"answer": "No"} for n in (2, 0, 1)])
        assert "twice among the questions: 1 (question_id '1')" in told


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

    def test_a_file_of_answers_for_each(self, tmp_path: Path) -> None:
        answers = {f"a{n}": said(letters) for n, letters in enumerate(self.ANSWERS.values())}
        self.check(score(tmp_path, self.QUESTIONS, answers))
        named = {name: said(letters, category=name) for name, letters in self.ANSWERS.items()}
        self.check(score(tmp_path, self.QUESTIONS, named))

    def test_one_file_of_answers_for_all(self, tmp_path: Path) -> None:
        answers = [
            one for name in CATEGORIES[::-1] for one in said(self.ANSWERS[name], category=name)
        ]
        self.check(score(tmp_path, self.QUESTIONS, answers))
        self.check(score(tmp_path, self.QUESTIONS, without("question_id", answers)))

    @pytest.mark.parametrize("name", ["random.json", "coco_pope_Random.jsonl", "x-random.json"])
    def test_names_of_question_files(self, tmp_path: Path, name: str) -> None:
        questions = (
            lines(tmp_path / name, asked("yn")),
            lines(tmp_path / "popular.json", asked("yn")),
        )
        answers = said("yn", category="random") + said("yy", category=" Popular")
        found = score(tmp_path, questions, answers)
        assert [one["accuracy"] for one in found["by_file"].values()] == [100, 50]
        assert list(found["by_file"]) == ["random", "popular"]

    def test_files_of_one_category_keep_their_names(self, tmp_path: Path) -> None:
        answers = {"one": said("yn"), "two": said("yn")}
        (tmp_path / "x").mkdir()
        for first, second, names in (
            ("coco_random.json", "aokvqa_random.json", ["coco_random.json", "aokvqa_random.json"]),
            ("a.json", "random.json", ["a.json", "random"]),
            ("unpopular.json", "popular.json", ["unpopular.json", "popular"]),
            (
                "random.json",
                "x/random.json",
                [f"{tmp_path}/random.json", f"{tmp_path}/x/random.json"],
            ),
        ):
            questions = tuple(lines(tmp_path / name, asked("yn")) for name in (first, second))
            assert list(score(tmp_path, questions, answers)["by_file"]) == names

    def test_the_same_file_twice(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "q_random.json", asked("yn"))
        told = refusal(tmp_path, (path, path), {"one": said("yn"), "two": said("yn")})
        assert "questions: expected each file once, found" in told

    @pytest.mark.parametrize(
        ("questions", "answers", "message"),
        [
            (("random", "popular"), said("yn"), "a.jsonl: line 1: expected a 'category' .* none"),
            (
                ("random", "popular"),
                said("yn", category="random") + said("yn", category="adversarial"),
                r"a.jsonl: line 3: .* question files \(random, popular\), found 'adversarial'",
            ),
            (
                ("random", "popular"),
                said("yn", category="random"),
                "answers to .*q_popular.json: expected one to each of 2 questions, found 0",
            ),
            (("random", "other"), said("yn"), "q_other.json: expected a name .* found no category"),
            (("random", "x_random"), said("yn"), "q_x_random.json: .*'random' a second time"),
            (("random", "popular", "other"), {"a": said("yn"), "b": said("yn")}, "or one for each"),
            (("random",), {"a": said("yn"), "b": said("yn")}, "the 1 question files, found 2"),
            (
                ("random", "popular"),
                {"a": said("yn", category="popular"), "b": said("yn", category="random")},
                "a.jsonl: line 1: expected answers of category 'random', to .*found 'popular'",
            ),
            (
                ("random", "popular"),
                {"popular": said("yn"), "random": said("yn")},
                "popular.jsonl: expected answers of category 'random'",
            ),
            (("random",), said("yn", category="popular"), "line 1: expected answers of .*'random'"),
        ],
    )
    def test_refusals(
        self, tmp_path: Path, questions: tuple[str, ...], answers: Any, message: str
    ) -> None:
        told = refusal(tmp_path, {name: asked("yn") for name in questions}, answers)
        assert re.search(message, told)


class TestRefusals:
    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"label": "maybe"}, "q.json: line 2: 'label': expected yes or no, found 'maybe'"),
            ({"label": 1}, "line 2: 'label': expected text, found 1"),
            ({"text": None}, "line 2: 'text': expected text, found null"),
            ({"image": 7}, "line 2: 'image': expected text, found 7"),
            ({"question_id": False}, "line 2: 'question_id': expected a number or text, found f"),
        ],
    )
    def test_questions(self, tmp_path: Path, entry: dict[str, Any], message: str) -> None:
        questions = asked("yn")
        questions[1] |= entry
        assert re.search(message, refusal(tmp_path, questions, said("yn")))

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"question_id": 2, "reply": "no"}, "a.jsonl: line 2: .* 'answer' or 'text', found 'q"),
            ({"question_id": 2, "answer": True}, "line 2: 'answer': expected text, found true"),
            ({"question_id": 2, "answer": "", "category": 3}, "'category': expected text, found 3"),
            ({"question_id": [2], "answer": ""}, "'question_id': expected a number or text"),
            (["no"], "a.jsonl: line 2: expected an object, found a list of 1"),
            ({}, "line 2: expected the key 'answer' or 'text', found no keys"),
        ],
    )
    def test_answers(self, tmp_path: Path, entry: Any, message: str) -> None:
        assert re.search(message, refusal(tmp_path, asked("yn"), [*said("y"), entry]))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "a.json: nothing in it; expected a JSON object on each line"),
            (b"\r\n \n", "nothing in it"),
            (b"[]", "nothing in it"),
            (b'{"answer": "no"}\n{"answer"', "a.json: line 2: not valid JSON"),
            (b'{\n "answer": "no"\n}', "a.json: line 1: not valid JSON"),
            (b'[{"answer": "no"}', "a.json: not valid JSON .*; expected a JSON object on each"),
            (b"[3]", "a.json: entry 0: expected an object, found 3"),
            (b"\xff\xfe{", "a.json: expected UTF-8 text"),
            (b"[" * 100_000, "not valid JSON"),
            (None, "a.json: no such file"),
        ],
    )
    def test_files(self, tmp_path: Path, content: bytes | None, message: str) -> None:
        path = tmp_path / "a.json"
        if content is not None:
            path.write_bytes(content)
        assert re.search(message, refusal(tmp_path, asked("yn"), (path,)))

    def test_folders_and_no_files(self, tmp_path: Path) -> None:
        questions = lines(tmp_path / "q.json", asked("yn"))
        with pytest.raises(GapinitError, match="expected the path of a file to write"):
            score_pope(questions, questions, tmp_path)
        with pytest.raises(GapinitError, match="cannot be read"):
            score_pope(tmp_path, questions, tmp_path / "s.json")
        with pytest.raises(GapinitError, match="questions: expected one or more files"):
            score_pope([], [], tmp_path / "s.json")


def test_the_command(tmp_path: Path) -> None:
    options = []
    for name in CATEGORIES:
        path = lines(tmp_path / f"coco_pope_{name}.json", asked("yynn"))
        options.append(f"--questions={path}")
    answers = [one for name in CATEGORIES for one in said("ynnn", category=name)]
    options.append(f"--predictions={lines(tmp_path / 'a.jsonl', answers)}")
    code = (
        "import sys\n"
        "from gapinit.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'peft', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "score", "pope", *options, f"--output={tmp_path / 's.json'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", "[]")
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["metrics"]["mean_recall"] == 50
    assert (found["metrics"]["accuracy"], found["metrics"]["tn"]) == (75, 6)


def test_a_mistake_on_the_command_line_is_one_message(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gapinit", "score", "pope", "--questions=no.json"]
        + ["--predictions=no.json", f"--output={tmp_path / 's.json'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "error: no.json: no such file\n")
