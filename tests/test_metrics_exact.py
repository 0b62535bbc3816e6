"""CIDEr and ROUGE-L equal pycocoevalcap's to the last digit, and several files one by one."""

from __future__ import annotations

import json
import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from typer.testing import CliRunner

from gapinit.cli import app
from gapinit.evaluate.metrics.captions import score_captions
from gapinit.evaluate.metrics.cider import CiderReferences
from gapinit.evaluate.metrics.rouge import rouge_l

from .caption_cases import FAST, coco, coco_results, write

Case = tuple[list[list[str]], list[str]]
WORDS = st.sampled_from(["a", "b", "c", "d", "e", "man", "dog", "'s", "the", "ran"])
CAPTION = st.lists(WORDS, max_size=14).map(" ".join)
CASES = st.lists(st.tuples(st.lists(CAPTION, min_size=1, max_size=4), CAPTION), min_size=1)


def zipf(images: int, seed: int) -> Case:
    """Captions whose words are as unevenly common as in a language."""
    draw = random.Random(seed)
    words = [f"w{number}" for number in range(3000)]
    weights = [1 / (number + 3) for number in range(3000)]
    references, hypotheses = [], []
    for _ in range(images):
        group = [" ".join(draw.choices(words, weights, k=draw.randint(5, 20))) for _ in range(5)]
        kept = draw.sample(group[0].split(), k=4)
        references.append(group)
        hypotheses.append(" ".join([*group[1].split()[:5], *kept]))
    return references, hypotheses


def check(references: list[list[str]], hypotheses: list[str]) -> None:
    gts = dict(enumerate(references))
    res = {number: [text] for number, text in enumerate(hypotheses)}
    corpus, values = Rouge().compute_score(gts, res)
    assert rouge_l(references, hypotheses) == (corpus, values.tolist())
    if not any(map(str.split, (text for group in references for text in group))):
        return  # the official CIDEr fails; ours refuses such references before
    corpus, values = Cider().compute_score(gts, res)
    assert CiderReferences(references).score(hypotheses) == (corpus, values.tolist())


@settings(deadline=None, max_examples=60)
@given(CASES)
def test_small_cases_to_the_last_digit(cases: list[tuple[list[str], str]]) -> None:
    check([group for group, _ in cases], [text for _, text in cases])


def test_many_captions_to_the_last_digit() -> None:
    check(*zipf(400, 0))


def files(folder: Path) -> tuple[Path, list[Path]]:
    """References, and three files of predictions: two of all images, one of some."""
    references = {
        1: ["A man in the U.S.", "He said stop"],
        2: ["two dogs run", "Dogs, dogs!"],
        3: ["a café etc.", "one cat"],
        4: ["nothing", "an empty room"],
    }
    said = [
        {1: "a man etc.", 2: "two dogs", 3: "one dog", 4: ""},
        {1: "stop", 2: "dogs run in the U.S.", 3: "a café", 4: "an empty room"},
        {2: "two dogs run", 3: "cat"},
    ]
    paths = [
        write(folder / f"p{number}.json", coco_results(one)) for number, one in enumerate(said)
    ]
    return write(folder / "references.json", coco(references)), paths


def test_several_files_score_as_each_alone(tmp_path: Path) -> None:
    references, predictions = files(tmp_path)
    one = [tmp_path / "one.json"]
    alone = [score_captions(references, [path], one, FAST)[0] for path in predictions]
    outputs = [tmp_path / f"s{number}.json" for number in range(3)]
    assert score_captions(references, predictions, outputs, FAST) == alone
    assert [json.loads(path.read_text()) for path in outputs] == alone


def test_the_command_takes_several(tmp_path: Path) -> None:
    references, predictions = files(tmp_path)
    outputs = [tmp_path / f"s{number}.json" for number in range(3)]
    call = ["score", "captions", f"--references={references}", "--metrics=cider, bleu"]
    call += [f"--predictions={path}" for path in predictions]
    done = CliRunner().invoke(app, [*call, *(f"--output={path}" for path in outputs)])
    assert done.exit_code == 0, done.output
    found = json.loads(outputs[2].read_text())
    assert list(found["metrics"]) == ["CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"]
    wrong = CliRunner().invoke(app, [*call, f"--output={outputs[0]}"])
    assert "--output: given 1 times, expected 3" in str(wrong.exception)
