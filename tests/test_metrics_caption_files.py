"""Caption files: what is read, how images are matched, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.captions import check_metrics, score_captions
from gapinit.evaluate.metrics.java import JAVA_VARIABLE

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

    def test_ids_as_text_and_as_numbers(self, tmp_path: Path) -> None:
        expected = score(tmp_path, coco(self.GROUPS), coco_results(self.PREDICTIONS))
        as_text = [{**e, "image_id": str(e["image_id"])} for e in coco_results(self.PREDICTIONS)]
        as_float = [{**e, "image_id": float(e["image_id"])} for e in coco_results(self.PREDICTIONS)]
        text_groups = {str(image): group for image, group in self.GROUPS.items()}
        assert score(tmp_path, coco(self.GROUPS), as_text)["per_sample"] == expected["per_sample"]
        assert score(tmp_path, coco(self.GROUPS), as_float)["per_sample"] == expected["per_sample"]
        found = score(tmp_path, coco(text_groups), coco_results(self.PREDICTIONS))
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
        assert "image 13 is not in" in refusal(tmp_path, references, coco_results({13: "a cat"}))


class TestCaptionsThatSayNothing:
    def test_an_empty_prediction_scores_zero_and_moves_nothing(self, tmp_path: Path) -> None:
        groups = {i: [f"picture number {i} of a red mat", f"image {i}"] for i in range(4)}
        predictions = {0: "", 1: "picture number 1 of a red mat", 2: " \u2028", 3: "..."}
        found = score(tmp_path, coco(groups), coco_results(predictions))
        for entry in found["per_sample"]:
            values = [entry[name] for name in OFFICIAL_NAMES if name in entry]
            if entry["image_id"] == 1:
                assert all(value > 30 for value in values)
                assert entry["ROUGE_L"] == pytest.approx(100)
            else:
                assert values == [0.0] * 6
        assert found["metrics"]["ROUGE_L"] == pytest.approx(25)

    def test_only_empty_predictions(self, tmp_path: Path) -> None:
        found = score(
            tmp_path, coco({1: ["a dog runs"], 2: ["a cat"]}), coco_results({1: "", 2: ""})
        )
        assert set(found["metrics"].values()) == {0.0}

    def test_nothing_beside_an_empty_reference_is_no_success(self, tmp_path: Path) -> None:
        found = score(
            tmp_path,
            coco({1: ["a dog runs", "."], 2: ["a cat"]}),
            coco_results({1: "", 2: "a cat"}),
        )
        assert [entry["ROUGE_L"] for entry in found["per_sample"]] == [0.0, pytest.approx(100)]
        assert found["metrics"]["ROUGE_L"] == pytest.approx(50)

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
    "references a list": (
        [1],
        coco_results({1: "a"}),
        ["references.json", "Karpathy", "a list of 1"],
    ),
    "references empty": ({}, coco_results({1: "a"}), ["references.json", "'annotations'"]),
    "instances file": (
        {"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": []}]},
        coco_results({1: "a"}),
        ["references.json: annotations[0]", "image 1", "'caption'"],
    ),
    "no images": ({"annotations": []}, coco_results({1: "a"}), ["references.json", "'images'"]),
    "image without id": (
        {"images": [{"file_name": "x"}], "annotations": []},
        coco_results({1: "a"}),
        ["images[0]", "'id'", "['file_name']"],
    ),
    "no reference": (
        coco({1: []}),
        coco_results({1: "a"}),
        ["references.json", "image 1", "no ref"],
    ),
    "karpathy without raw": (
        {"images": [{"cocoid": 1, "sentences": [{"tokens": ["a"]}]}]},
        coco_results({1: "a"}),
        ["images[0]: sentences[0]", "'raw'"],
    ),
    "karpathy without ids": (
        {"images": [{"sentences": []}]},
        coco_results({1: "a"}),
        ["images[0]", "'imgid'"],
    ),
    "karpathy with some cocoids": (
        {"images": [{"cocoid": 1, "sentences": []}, {"imgid": 1, "sentences": []}]},
        coco_results({1: "a"}),
        ["images[1]", "'cocoid'"],
    ),
    "karpathy image twice": (
        {"images": [{"cocoid": 1, "sentences": []}, {"cocoid": 1, "sentences": []}]},
        coco_results({1: "a"}),
        ["images[1]", "'cocoid' 1", "twice"],
    ),
    "karpathy sentences": (
        {"images": [{"cocoid": 1, "sentences": "a dog"}]},
        coco_results({1: "a"}),
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
        found = score(tmp_path, GOOD, coco_results({1: "a dog"}), metrics=["bleu"])
        assert list(found["metrics"]) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"]
