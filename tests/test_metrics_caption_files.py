"""Caption files: what is read, how images are matched, and what is refused in which words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.captions import score_captions

from .caption_cases import OFFICIAL_NAMES, coco, coco_results, refusal, score, write


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
        predictions = coco_results(self.PREDICTIONS)
        expected = score(tmp_path, coco(self.GROUPS), predictions)
        found = score(tmp_path, self.karpathy(key), predictions)
        assert found["per_sample"] == expected["per_sample"]
        assert found["metrics"] == expected["metrics"]
        assert found["metrics"]["CIDEr"] > 1
        # Of the split that was predicted one image is missing; the other splits do not count.
        assert found["images_without_prediction"] == 1

    @pytest.mark.parametrize("kind", [str, float])
    def test_ids_of_other_types(self, tmp_path: Path, kind: type) -> None:
        expected = score(
            tmp_path, coco(self.GROUPS), coco_results(self.PREDICTIONS), metrics=["rouge"]
        )
        predictions = coco_results({kind(image): text for image, text in self.PREDICTIONS.items()})
        found = score(tmp_path, coco(self.GROUPS), predictions, metrics=["rouge"])
        assert found["per_sample"] == expected["per_sample"]
        groups = {kind(image): group for image, group in self.GROUPS.items()}
        found = score(tmp_path, coco(groups), coco_results(self.PREDICTIONS), metrics=["rouge"])
        assert found["metrics"] == expected["metrics"]

    def test_an_id_that_is_there_as_both_is_matched_exactly(self, tmp_path: Path) -> None:
        references = coco({1: ["a red cat sits"], "1": ["two dogs run fast"]})
        found = score(tmp_path, references, coco_results({1: "two dogs run fast", "1": "a cat"}))
        assert found["per_sample"][0]["image_id"] == 1
        assert found["per_sample"][0]["ROUGE_L"] == 0

    def test_captions_of_images_that_are_not_listed_are_not_used(self, tmp_path: Path) -> None:
        references = coco(self.GROUPS | {13: ["a red cat on a mat"]})
        references["images"].pop()
        found = score(tmp_path, references, coco_results(self.PREDICTIONS))
        assert found["images_without_prediction"] == 0
        (tmp_path / "scores.json").unlink()
        told = refusal(tmp_path, references, coco_results({13: "a cat"}))
        assert "(image_id 13): not in" in told


class TestCaptionsThatSayNothing:
    def test_an_empty_prediction_scores_zero_and_moves_nothing(self, tmp_path: Path) -> None:
        groups = {i: [f"picture number {i} of a red mat", f"image {i}"] for i in range(5)}
        groups[4] = ["."]
        predictions = {0: "", 1: "picture number 1 of a red mat", 2: " \u2028", 3: "...", 4: ""}
        found = score(tmp_path, coco(groups), coco_results(predictions))
        for entry in found["per_sample"]:
            values = [entry[name] for name in OFFICIAL_NAMES if name in entry]
            if entry["image_id"] == 1:
                assert all(value > 30 for value in values)
                assert entry["ROUGE_L"] == pytest.approx(100)
            else:
                assert values == [0.0] * 6
        assert found["metrics"]["ROUGE_L"] == pytest.approx(20)

    def test_references_without_a_word(self, tmp_path: Path) -> None:
        assert "no word" in refusal(tmp_path, coco({1: [".", ""]}), coco_results({1: "a dog"}))

    def test_half_a_surrogate_pair(self, tmp_path: Path) -> None:
        groups = {1: ["a dog \ud83d runs here"], 2: ["a cat"]}
        found = score(
            tmp_path, coco(groups), coco_results({1: "a dog runs \udc00 here", 2: "a cat"})
        )
        assert found["per_sample"][0]["Bleu_4"] == pytest.approx(100, abs=1e-5)
        assert found["per_sample"][0]["caption"] == "a dog runs \ufffd here"


GOOD = coco({1: ["a dog runs"], 2: ["a cat sits"]})
ONE = coco_results({1: "a"})


def images(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"images": list(entries)}


# Of each: references, predictions, what the message says.
MISTAKES = {
    "not a list": (GOOD, {"1": "a dog"}, "predictions.json: expected a list .*, found an object"),
    "no predictions": (GOOD, [], "predictions.json: expected predictions"),
    "no image_id": (GOOD, [{"caption": "a"}], "entry 0: .* 'image_id', found 'caption'"),
    "no caption": (GOOD, [{"image_id": 1}], r"entry 0 \(image_id 1\): .* the key 'caption'"),
    "caption no text": (
        GOOD,
        coco_results({1: None}),
        "entry 0 .*'caption': expected text, .*null",
    ),
    "id no number": (GOOD, coco_results({True: "a"}), "entry 0: 'image_id': .*, found true"),
    "unknown image": (
        GOOD,
        coco_results({1: "a", 7: "a"}),
        r"predictions.json: entry 1 \(image_id 7\): not in .*references.json, which has 2 .*1, 2",
    ),
    "second": (GOOD, coco_results({2: "a", "2": "a"}), r"entry 1 \(image_id '2'\): a second"),
    "references a list": ([1], ONE, "references.json: expected an object .*, found a list of 1"),
    "instances": (
        {"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": []}]},
        ONE,
        r"references.json: annotations\[0\] \(image 1\): expected the key 'caption'",
    ),
    "image without id": (
        {"images": [{"file_name": "x"}], "annotations": []},
        ONE,
        r"images\[0\]: expected the key 'id', found 'file_name'",
    ),
    "no reference": (coco({1: []}), ONE, "references.json: image 1: .*, found none"),
    "no raw": (
        images({"cocoid": 1, "sentences": [{"tokens": ["a"]}]}),
        ONE,
        r"images\[0\]: sentences\[0\]: expected the key 'raw'",
    ),
    "some cocoids": (
        images({"imgid": 1, "sentences": []}, {"cocoid": 1, "sentences": []}),
        ONE,
        r"images\[0\]: expected the key 'cocoid'",
    ),
    "image twice": (
        images({"cocoid": 1, "sentences": []}, {"cocoid": 1, "sentences": []}),
        ONE,
        r"images\[1\]: 'cocoid' 1 is repeated",
    ),
    "sentences": (
        images({"cocoid": 1, "sentences": "a dog"}),
        ONE,
        r"images\[0\]: 'sentences': expected a list, found 'a dog'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_java_is_started(tmp_path: Path, mistake: str) -> None:
    references, predictions, message = MISTAKES[mistake]
    assert re.search(message, refusal(tmp_path, references, predictions, java="/no/java"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    there, output = write(tmp_path / "there.json", GOOD), [tmp_path / "s.json"]
    (tmp_path / "p.json").write_text('[{"image_id": 1,')
    for references, predictions, message in (
        (tmp_path / "gone.json", there, "gone.json: no such file"),
        (there, tmp_path / "gone.json", "gone.json: no such file"),
        (there, tmp_path / "p.json", "p.json: not valid JSON"),
    ):
        with pytest.raises(GapinitError, match=message):
            score_captions(references, [predictions], output)


def test_metrics(tmp_path: Path) -> None:
    found = score(tmp_path, GOOD, coco_results({1: "a dog"}), metrics=["rouge", "cider"])
    assert list(found["metrics"]) == ["CIDEr", "ROUGE_L"]
    (tmp_path / "scores.json").unlink()
    for metrics, message in ((["cider", "spice"], "rouge, found spice"), ([], "found none")):
        assert message in refusal(tmp_path, GOOD, ONE, metrics=metrics)
