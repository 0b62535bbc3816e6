"""Caption scores against the official pipeline, and properties that they have."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from gapinit.evaluate.metrics.captions import score_captions
from gapinit.evaluate.metrics.java import find_java

from .caption_cases import OFFICIAL_NAMES, coco, coco_results, score, write

SAMPLE = Path(__file__).parents[2] / "shared/data/coco-sample/annotations/captions_val2017.json"

# (id, references, prediction): abbreviations before a line's end, quotes, brackets, currency,
# tags, numbers with fractions, accents, emoji, tabs, repeated spaces, a newline, repeated words.
HARD = [
    (17, ["A man rides in the U.S.", "The man is riding.", "a rider"], "A man riding in the U.S."),
    (3, ['He said "stop!" (twice)', "It's a dog's life"], "a dog's (odd) life - isn't it?"),
    (900, ["1  1/2 cups & £5", "One and 1/2 cups etc.", "cups"], "1 1/2 cups of tea etc."),
    (44, ["<b>bold</b> café 😀", "A café's door :-)"], "a CAFÉ 😀\nwith a door"),
    (5, ["two\tdogs   run...", "Two dogs; two cats"], "two two two dogs"),
    (62, ["A dog runs here.", "one dog"], ""),
    (63, ["Nothing to see.", "an empty room"], "..."),
    (61, ["the cat", "A cat sat on the mat."], "a cat sat on the mat"),
    (7, ["Someone cannot see it", "can't see -- it"], "someone cannot see it"),
]


def official(references: dict[Any, list[str]], predictions: dict[Any, str]) -> dict[str, Any]:
    """Score with pycocoevalcap alone, in the order of COCOEvalCap.evaluate, as fractions."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    gts = tokenizer.tokenize({i: [{"caption": c} for c in g] for i, g in references.items()})
    res = tokenizer.tokenize({i: [{"caption": predictions[i]}] for i in references})
    found: dict[str, Any] = {}
    for scorer, names in (
        (Bleu(4), ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"]),
        (Meteor(), ["METEOR"]),
        (Rouge(), ["ROUGE_L"]),
        (Cider(), ["CIDEr"]),
    ):
        corpus, samples = scorer.compute_score(gts, res)
        several = isinstance(corpus, list)
        for name, value, values in zip(
            names, corpus if several else [corpus], samples if several else [samples], strict=True
        ):
            found[name] = (float(value), dict(zip(gts, map(float, values), strict=True)))
    return found


def test_scores_equal_the_official_pipelines(tmp_path: Path) -> None:
    """The hard captions and, if there, real COCO's; METEOR is loaded here once, for all checks.

    Ours scores the file of predictions twice: the second time METEOR and references are reused.
    """
    references: dict[Any, list[str]] = {image: group for image, group, _ in HARD}
    predictions: dict[Any, str] = {image: caption for image, _, caption in HARD}
    if SAMPLE.exists():
        content = json.loads(SAMPLE.read_text(encoding="utf-8"))
        groups: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            groups[annotation["image_id"]].append(annotation["caption"])
        for image, group in groups.items():
            predictions[image], references[image] = group[0], group[1:]
    # In another order than the references': ours must find the official order itself.
    shuffled = coco_results(dict(sorted(predictions.items(), key=lambda item: str(item[0]))))
    files = write(tmp_path / "r.json", coco(references)), [write(tmp_path / "p.json", shuffled)] * 2
    with pytest.MonkeyPatch.context() as context:
        # A German METEOR cannot read its own numbers, an ASCII one loses the accents.
        foreign = "-Duser.language=de -Duser.country=DE -Dfile.encoding=US-ASCII"
        context.setenv("JAVA_TOOL_OPTIONS", foreign)
        ours, second = score_captions(*files, [tmp_path / "s1.json", tmp_path / "s2.json"])
    assert ours == second == json.loads((tmp_path / "s2.json").read_text(encoding="utf-8"))
    (tmp_path / "java").symlink_to(find_java())
    with pytest.MonkeyPatch.context() as context:
        context.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        expected = official(references, predictions)
    for name, (corpus, values) in expected.items():
        assert ours["metrics"][name] == pytest.approx(100 * corpus, abs=1e-9)
        assert corpus > 0.01
        assert {entry["image_id"]: entry[name] for entry in ours["per_sample"]} == {
            image: pytest.approx(100 * value, abs=1e-9) for image, value in values.items()
        }
    for entry in ours["per_sample"]:
        if entry["image_id"] in (62, 63):  # they hold no word
            assert [entry[name] for name in OFFICIAL_NAMES] == [0.0] * 7
    assert tuple(ours["metrics"]) == OFFICIAL_NAMES
    assert tuple(ours["per_sample"][0]) == ("image_id", "caption", *OFFICIAL_NAMES)
    assert ours["images"] == len(references)
    assert ours["reference_captions"] == sum(map(len, references.values()))
    assert len(ours["inputs"]["references"]["sha256"]) == 64
    assert ours["packages"]["pycocoevalcap"] != "not installed"
    assert ours["java"][0].isdigit()


REFERENCES = {
    1: ["a red cat sits on a mat", "the cat sits there quietly"],
    2: ["a dog runs on green grass", "one dog runs"],
    3: ["two birds sit on a wire", "birds on a long wire"],
}
PREDICTIONS = {1: "a red cat sits on grass", 2: "a dog runs", 3: "a cat on a long wire"}


def test_one_image_has_no_document_frequency(tmp_path: Path) -> None:
    found = score(tmp_path, coco({1: ["a b c d e f"]}), coco_results({1: "a b c d"}))["metrics"]
    assert found["CIDEr"] == 0.0
    assert found["Bleu_4"] == pytest.approx(100 * math.exp(1 - 6 / 4), abs=1e-6), "brevity penalty"


def test_only_evaluated_images_count(tmp_path: Path) -> None:
    """Document frequencies come from the images that have predictions, from no other."""
    scores = score(tmp_path, coco(REFERENCES), coco_results(PREDICTIONS))
    more = REFERENCES | {4: ["a red cat sits on a mat"], 5: ["a dog runs", "wire"]}
    found = score(tmp_path, coco(more), coco_results(PREDICTIONS))
    assert found["metrics"] == scores["metrics"]
    assert scores["images_without_prediction"] == 0
    assert (found["images"], found["images_without_prediction"]) == (3, 2)


def test_a_reference_as_prediction_is_perfect(tmp_path: Path) -> None:
    draw = random.Random(1)
    words = ["a", "the", "dog", "cat", "red", "big", "runs", "sits", "on", "mat"]
    groups = {
        image: [" ".join(draw.choices(words, k=draw.randint(4, 9))) for _ in range(3)]
        for image in range(30)
    }
    said = {image: draw.choice(group) for image, group in groups.items()}
    found = score(tmp_path, coco(groups), coco_results(said))["metrics"]
    for name in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"):
        assert found[name] == pytest.approx(100, abs=1e-5)
