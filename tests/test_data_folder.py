"""Real datasets as their files say: splits, exclusions, subsets, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gapinit.config.yaml_files import read_settings
from gapinit.data.dataset import prepare_dataset, read_dataset_settings
from gapinit.data.folder import FolderSettings, load_folder, read_folder
from gapinit.data.manifest import read_manifest
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.vqa import score_vqa

DATASETS = Path(__file__).parents[1] / "config" / "datasets"


def draw(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (shade, 10, 90)).save(path)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def coco_name(image_id: int, year: str = "2014") -> str:
    part = "train" if image_id < 100 else "val"
    return f"COCO_{part}2014_{image_id:012d}.jpg" if year == "2014" else f"{image_id:012d}.jpg"


SPLITS = {image_id: "train" for image_id in (1, 2, 3, 4)}
SPLITS |= {101: "restval", 102: "val", 103: "test", 104: "test"}


def karpathy() -> list[dict[str, Any]]:
    """Return the entries of a Karpathy split of eight COCO images, one caption each."""
    return [
        {
            "filepath": "train2014" if image_id < 100 else "val2014",
            "filename": coco_name(image_id),
            "imgid": number,
            "split": split,
            "cocoid": image_id,
            "sentids": [number],
            "sentences": [{"raw": f"caption {image_id}", "tokens": [], "imgid": number,
                           "sentid": number}],
        }
        for number, (image_id, split) in enumerate(SPLITS.items())
    ]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write a data folder as the workflow retrieves it: COCO, Karpathy's splits, and the rest."""
    for image_id in SPLITS:
        part = "train2014" if image_id < 100 else "val2014"
        draw(tmp_path / "coco" / part / coco_name(image_id), image_id)
    write(tmp_path / "karpathy/dataset_coco.json", {"images": karpathy(), "dataset": "coco"})
    # train2017 holds images of 2014's validation set, Karpathy's test images among them.
    in_2017 = [1, 2, 4, 101, 102, 103]
    write(
        tmp_path / "coco/annotations/captions_train2017.json",
        {
            "images": [{"id": i, "file_name": coco_name(i, "2017")} for i in in_2017],
            "annotations": [
                {"id": 10 * i + k, "image_id": i, "caption": f"{k} of {i}"}
                for i in in_2017
                for k in range(2)
            ],
        },
    )
    for split, images in (("train", [1, 2, 3]), ("val", [101, 103])):
        vqa(tmp_path / "coco/vqav2", "v2_", split, images)
    vqa(tmp_path / "coco/okvqa", "", "val", [102, 103], raw=True)
    for category in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": n, "image": coco_name(103), "text": "Is there a dog?", "label": label}
            for n, label in enumerate(("yes", "no"), start=1)
        ]
        path = tmp_path / f"coco/pope/coco_pope_{category}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\r\n" for line in lines), newline="")
    talks = [
        {
            "id": f"{image_id:012d}",
            "image": coco_name(image_id, "2017"),
            "conversations": [
                {"from": "human", "value": f"What is {n}?\n<image>"},
                {"from": "gpt", "value": f"It is {n}."},
            ],
        }
        for n, image_id in enumerate(in_2017 * 3)
    ]
    write(tmp_path / "coco/llava/llava_instruct_150k.json", talks)
    return tmp_path


def vqa(folder: Path, version: str, split: str, images: Iterable[int], raw: bool = False) -> None:
    questions, annotations = [], []
    for image_id in images:
        ids = {"image_id": image_id, "question_id": 10 * image_id}
        questions.append({**ids, "question": f"What is on image {image_id}?"})
        answers = [
            {"answer_id": n, "answer": "ride", **({"raw_answer": "riding"} if raw else {})}
            for n in range(1, 11)
        ]
        annotations.append(
            {**ids, "question_type": "what is", "answer_type": "other", "answers": answers}
        )
    write(folder / f"{version}OpenEnded_mscoco_{split}2014_questions.json",
          {"questions": questions})  # fmt: skip
    write(folder / f"{version}mscoco_{split}2014_annotations.json", {"annotations": annotations})


def settings(name: str) -> FolderSettings:
    return read_settings(DATASETS / f"{name}.yaml", FolderSettings)


def ids(samples: Iterable[Any]) -> list[int]:
    return [sample.image_id for sample in samples]


def test_karpathys_restval_is_trained_on(data: Path) -> None:
    manifest = load_folder(settings("coco"), data / "coco")
    assert {split: ids(samples) for split, samples in manifest.splits.items()} == {
        "train": [1, 2, 3, 4, 101],
        "val": [102],
        "test": [103, 104],
    }


def test_calibration_has_no_image_of_karpathys_validation_or_test(data: Path) -> None:
    manifest = load_folder(settings("coco-calibration"), data / "coco")
    assert list(manifest.splits) == ["train"]
    assert ids(manifest.split("train")) == [1, 2, 4, 101], "102 is validation, 103 is test"
    # The images are those of 2014 under their names of then.
    assert manifest.images("train")[3] == data / "coco/val2014" / coco_name(101)
    assert manifest.captions("train")[0].captions == ("0 of 1", "1 of 1")
    files = sorted(Path(name).name for name in manifest.annotations)
    assert files == ["captions_train2017.json", "dataset_coco.json"]


def test_vqav2_is_scored_on_its_validation_questions(data: Path) -> None:
    manifest = load_folder(settings("vqav2"), data / "coco")
    assert manifest.kind == "vqa"
    assert ids(manifest.split("train")) == [1, 2, 3]
    assert ids(manifest.split("val")) == ids(manifest.split("test")) == [101, 103]


def test_okvqa_takes_the_answers_that_people_gave(data: Path, tmp_path: Path) -> None:
    prepare_dataset(DATASETS / "okvqa.yaml", tmp_path / "out", data_root=data / "coco")
    manifest = read_manifest(tmp_path / "out/manifest.json")
    assert set(manifest.splits) == {"val", "test"}
    question = manifest.split("test")[0]
    assert getattr(question, "answers") == ("riding",) * 10  # noqa: B009
    # What predictions are scored against is a pair of files that the scorer reads.
    predictions = [{"question_id": 1020, "answer": "riding"}, {"question_id": 1030, "answer": "x"}]
    write(tmp_path / "p.json", predictions)
    references = tmp_path / "out/references"
    scores = score_vqa(
        references / "test_questions.json",
        references / "test_annotations.json",
        tmp_path / "p.json",
        tmp_path / "s.json",
    )
    assert scores["metrics"]["accuracy"] == pytest.approx(50.0)


def test_pope_keeps_its_three_files_apart(data: Path) -> None:
    manifest = load_folder(settings("pope"), data / "coco")
    assert [getattr(item, "category") for item in manifest.split("test")] == [  # noqa: B009
        "random", "random", "popular", "popular", "adversarial", "adversarial"
    ]  # fmt: skip


def test_a_subset_is_drawn_by_seed(data: Path) -> None:
    chosen = settings("llava-instruct").model_copy(update={"sample": {"train": 5}})
    one, two = (load_folder(chosen, data / "coco").split("train") for _ in range(2))
    assert one == two and len(one) == 5
    other = chosen.model_copy(update={"seed": 43})
    assert load_folder(other, data / "coco").split("train") != one
    assert settings("llava-instruct").sample == {"train": 30000}


@pytest.mark.parametrize(
    "name", [path.stem for path in DATASETS.glob("*.yaml") if "test" not in path.stem]
)
def test_every_dataset_file_is_valid_and_names_itself(name: str) -> None:
    assert read_dataset_settings(DATASETS / f"{name}.yaml").name == name


@pytest.mark.parametrize(
    ("name", "remove", "message"),
    [
        ("vqav2", "coco/vqav2/v2_mscoco_val2014_annotations.json", "v2_mscoco_val2014_annotations"),
        ("pope", "coco/pope/coco_pope_popular.json", "no file .*_pope_popular.json"),
        ("llava-instruct", "coco/llava/llava_instruct_150k.json", "no such file .*llava_instruct"),
        ("coco", "karpathy/dataset_coco.json", "no such file or folder"),
        ("coco-calibration", "karpathy/dataset_coco.json", "no such file or folder"),
        ("vqav2", "coco/val2014/" + coco_name(101), "COCO_.*000000000101"),
    ],
)
def test_what_is_missing_is_named(data: Path, name: str, remove: str, message: str) -> None:
    (data / remove).unlink()
    with pytest.raises(GapinitError, match=message):
        read_folder(settings(name), data / "coco")


def test_a_users_own_folder_may_hold_everything(data: Path, tmp_path: Path) -> None:
    """`folders: {coco: ...}` names one folder; its annotation files lie in it somewhere usual."""
    own = data / "coco"
    (data / "karpathy/dataset_coco.json").rename(own / "dataset_coco.json")
    assert ids(load_folder(settings("coco"), own).split("test")) == [103, 104]
    assert ids(load_folder(settings("coco-calibration"), own).split("train")) == [1, 2, 4, 101]
