"""Caption scores against the official pipeline, and against formulas worked out here."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gapinit.evaluate.metrics.java import find_java

from .caption_cases import FAST, OFFICIAL_NAMES, coco, coco_results, score, write

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


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our scores and the official ones of the hard captions and, if there, of real COCO's."""
    references: dict[Any, list[str]] = {image: group for image, group, _ in HARD}
    predictions: dict[Any, str] = {image: caption for image, _, caption in HARD}
    if SAMPLE.exists():
        content = json.loads(SAMPLE.read_text(encoding="utf-8"))
        groups: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            groups[annotation["image_id"]].append(annotation["caption"])
        for image, group in groups.items():
            predictions[image], references[image] = group[0], group[1:]
    folder = tmp_path_factory.mktemp("compared")
    programs = tmp_path_factory.mktemp("bin")
    (programs / "java").symlink_to(find_java())
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setenv("PATH", str(programs), prepend=os.pathsep)
        expected = official(references, predictions)
    # In another order than the references': ours must find the official order itself.
    shuffled = coco_results(dict(sorted(predictions.items(), key=lambda item: str(item[0]))))
    with patch.context() as context:
        # A German METEOR cannot read its own numbers, an ASCII one loses the accents.
        foreign = "-Duser.language=de -Duser.country=DE -Dfile.encoding=US-ASCII"
        context.setenv("JAVA_TOOL_OPTIONS", foreign)
        ours = score(folder, coco(references), shuffled, metrics=("meteor", *FAST))
    return ours, expected


@pytest.mark.slow
class TestAgainstTheOfficialPipeline:
    @pytest.mark.parametrize("name", OFFICIAL_NAMES)
    def test_corpus_values(self, compared: Any, name: str) -> None:
        ours, expected = compared
        assert ours["metrics"][name] == pytest.approx(100 * expected[name][0], abs=1e-9)
        assert expected[name][0] > 0.01

    @pytest.mark.parametrize("name", OFFICIAL_NAMES)
    def test_values_of_each_image(self, compared: Any, name: str) -> None:
        ours, expected = compared
        values = {entry["image_id"]: entry[name] for entry in ours["per_sample"]}
        assert values == {
            image: pytest.approx(100 * value, abs=1e-9)
            for image, value in expected[name][1].items()
        }

    def test_real_captions_took_part(self, compared: Any) -> None:
        if not SAMPLE.exists():
            pytest.skip("coco-sample is not beside the repository")
        assert compared[0]["images"] == 50 + len(HARD)
        assert compared[0]["reference_captions"] == 200 + sum(len(group) for _, group, _ in HARD)

    def test_captions_without_words_took_part(self, compared: Any) -> None:
        """What the official code gives a caption that says nothing is 0 (ROUGE-L: see below)."""
        ours, expected = compared
        for image in (62, 63):
            entry = next(e for e in ours["per_sample"] if e["image_id"] == image)
            assert [entry[name] for name in OFFICIAL_NAMES] == [0.0] * 7
            assert expected["METEOR"][1][image] == 0.0

    def test_names_and_order(self, compared: Any) -> None:
        assert tuple(compared[0]["metrics"]) == OFFICIAL_NAMES
        assert tuple(compared[0]["per_sample"][0]) == ("image_id", "caption", *OFFICIAL_NAMES)

    def test_provenance(self, compared: Any) -> None:
        ours = compared[0]
        assert len(ours["inputs"]["references"]["sha256"]) == 64
        assert ours["packages"]["pycocoevalcap"] != "not installed"
        assert ours["java"][0].isdigit()


def cider_by_formula(references: list[list[str]], hypotheses: list[str]) -> list[float]:
    """CIDEr-D from the paper (Vedantam et al. 2015, equations 2, 3 and section 4), in percent."""

    def grams(caption: str, n: int) -> Counter[tuple[str, ...]]:
        words = caption.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    def weights(caption: str, n: int) -> dict[tuple[str, ...], float]:
        return {
            gram: count
            * math.log(
                len(references)
                / max(1, sum(any(gram in grams(r, n) for r in g) for g in references))
            )
            for gram, count in grams(caption, n).items()
        }

    scores = []
    for group, hypothesis in zip(references, hypotheses, strict=True):
        total = 0.0
        for n in range(1, 5):
            h = weights(hypothesis, n)
            for reference in group:
                r = weights(reference, n)
                norms = math.hypot(*h.values()) * math.hypot(*r.values())
                if norms:
                    dot = sum(min(h[gram], r[gram]) * r[gram] for gram in h.keys() & r.keys())
                    gap = len(hypothesis.split()) - len(reference.split())
                    total += dot / norms * math.exp(-(gap**2) / (2 * 6.0**2))
        scores.append(100 * 10 * total / 4 / len(group))
    return scores


class TestAgainstFormulas:
    REFERENCES = {
        1: ["a red cat sits on a mat", "the cat sits there quietly"],
        2: ["a dog runs on green grass", "one dog runs"],
        3: ["two birds sit on a wire", "birds on a long wire"],
    }
    PREDICTIONS = {1: "a red cat sits on grass", 2: "a dog runs", 3: "a cat on a long wire"}

    @pytest.fixture
    def scores(self, tmp_path: Path) -> dict[str, Any]:
        return score(tmp_path, coco(self.REFERENCES), coco_results(self.PREDICTIONS))

    def test_cider(self, scores: dict[str, Any]) -> None:
        expected = cider_by_formula(list(self.REFERENCES.values()), list(self.PREDICTIONS.values()))
        found = [entry["CIDEr"] for entry in scores["per_sample"]]
        assert found == pytest.approx(expected, abs=1e-9)
        assert scores["metrics"]["CIDEr"] == pytest.approx(sum(expected) / 3, abs=1e-9)

    def test_bleu(self, scores: dict[str, Any]) -> None:
        # Words: 5 of 6 ("grass" is not there), 3 of 3, 5 of 6 ("cat"; "a" is clipped at 1 in
        # the first reference and in the second, so "a ... a" counts once: 4 of 6).
        # Lengths 6 + 3 + 6 = 15; closest references 5 (not 7: the shorter of two equally
        # close), 3, 6 or 5 -> 6: 14. No brevity penalty.
        assert scores["metrics"]["Bleu_1"] == pytest.approx(100 * (5 + 3 + 4) / 15, abs=1e-6)
        # Pairs: "a red", "red cat", "cat sits", "sits on"; "a dog", "dog runs"; "on a",
        # "a long", "long wire" of 5 + 2 + 5.
        bleu_2 = math.sqrt((12 / 15) * (9 / 12))
        assert scores["metrics"]["Bleu_2"] == pytest.approx(100 * bleu_2, abs=1e-6)

    def test_bleu_brevity_penalty(self, tmp_path: Path) -> None:
        found = score(tmp_path, coco({1: ["a b c d e f"]}), coco_results({1: "a b c d"}))
        assert found["metrics"]["Bleu_4"] == pytest.approx(100 * math.exp(1 - 6 / 4), abs=1e-6)

    def test_rouge(self, scores: dict[str, Any]) -> None:
        # "a dog runs": subsequences of 3 with the first reference (6 words) and 2 with the
        # second (3 words): best precision 3/3, best recall 2/3.
        recall, precision, weight = 2 / 3, 1.0, 1.2**2
        expected = (1 + weight) * precision * recall / (recall + weight * precision)
        assert scores["per_sample"][1]["ROUGE_L"] == pytest.approx(100 * expected, abs=1e-9)

    def test_one_image_has_no_document_frequency(self, tmp_path: Path) -> None:
        found = score(
            tmp_path, coco({1: ["a dog runs here"]}), coco_results({1: "a dog runs here"})
        )
        assert found["metrics"]["CIDEr"] == 0.0
        assert found["metrics"]["ROUGE_L"] == pytest.approx(100)

    def test_only_evaluated_images_count(self, tmp_path: Path) -> None:
        """Document frequencies come from the images that have predictions, from no other."""
        more = self.REFERENCES | {4: ["a red cat sits on a mat"], 5: ["a dog runs", "wire"]}
        part = score(tmp_path, coco(self.REFERENCES), coco_results(self.PREDICTIONS))
        found = score(tmp_path, coco(more), coco_results(self.PREDICTIONS))
        assert found["metrics"] == part["metrics"]
        assert (part["images_without_prediction"], found["images_without_prediction"]) == (0, 2)
        assert found["images"] == 3


CAPTION = st.lists(
    st.sampled_from(["a", "the", "dog", "cat", "red", "big", "runs", "sits", "on", "mat"]),
    min_size=4,
    max_size=9,
).map(" ".join)
SLOW = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class TestProperties:
    @SLOW
    @given(st.lists(st.lists(CAPTION, min_size=1, max_size=3), min_size=2, max_size=5))
    def test_a_reference_as_prediction_is_perfect(
        self, tmp_path: Path, groups: list[list[str]]
    ) -> None:
        references = dict(enumerate(groups))
        found = score(
            tmp_path, coco(references), coco_results({i: g[-1] for i, g in references.items()})
        )
        for name in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"):
            assert found["metrics"][name] == pytest.approx(100, abs=1e-5)

    @SLOW
    @given(
        st.lists(st.tuples(CAPTION, CAPTION, CAPTION), min_size=2, max_size=6),
        st.randoms(use_true_random=False),
    )
    def test_order_of_predictions_does_not_matter(
        self, tmp_path: Path, rows: list[tuple[str, str, str]], order: random.Random
    ) -> None:
        references = coco({i: list(row[:2]) for i, row in enumerate(rows)})
        predictions = coco_results({i: row[2] for i, row in enumerate(rows)})
        shuffled = order.sample(predictions, len(predictions))
        first = score(tmp_path, references, predictions)
        second = score(tmp_path, references, shuffled)
        assert first["per_sample"] == second["per_sample"]
        assert first["metrics"] == second["metrics"]
        mean = sum(entry["CIDEr"] for entry in first["per_sample"]) / len(rows)
        assert first["metrics"]["CIDEr"] == pytest.approx(mean, abs=1e-9)


class TestCost:
    def test_quiet_and_light(self, tmp_path: Path) -> None:
        """400 images score in seconds, print nothing and load neither torch nor pandas."""
        rng = random.Random(0)
        words = [f"word{i}" for i in range(300)]

        def caption() -> str:
            return " ".join(rng.choices(words, k=11))

        references = coco({i: [caption() for _ in range(5)] for i in range(400)})
        write(tmp_path / "r.json", references)
        write(tmp_path / "p.json", coco_results({i: caption() for i in range(400)}))
        code = (
            "import sys, time; start = time.process_time()\n"
            "from gapinit.evaluate.metrics.captions import score_captions\n"
            "score_captions('r.json', 'p.json', 's.json', ('cider', 'bleu', 'rouge'))\n"
            "assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules)\n"
            "sys.stderr.write(str(time.process_time() - start))"
        )
        root = str(Path(__file__).parents[1])
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": root},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert float(done.stderr) < 6  # CPU seconds; about 1 on an idle machine
