"""Real datasets as their files say: splits, exclusions, subsets, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from gapinit.config.yaml_files import read_settings
from gapinit.data.dataset import prepare_dataset, read_dataset_settings
from gapinit.data.folder import FolderSettings, load_folder, read_folder
from gapinit.data.manifest import read_manifest
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.vqa import score_vqa

from .dataset_folders import name_2014, retrieved
from .plain_json import write_json

DATASETS = Path(__file__).parents[1] / "config" / "datasets"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    retrieved(tmp_path)
    return tmp_path


def settings(name: str) -> FolderSettings:
    return read_settings(DATASETS / f"{name}.yaml", FolderSettings)


def ids(samples: Iterable[Any]) -> list[int]:
    return [sample.image_id for sample in samples]


def test_karpathys_restval_is_trained_on(data: Path) -> None:
    manifest = load_folder(settings("coco"), data / "coco")
    found = {split: ids(samples) for split, samples in manifest.splits.items()}
    assert found == {"train": [1, 2, 3, 4], "val": [5], "test": [6, 7]}


def test_calibration_has_no_image_of_karpathys_validation_or_test(data: Path) -> None:
    manifest = load_folder(settings("coco-calibration"), data / "coco")
    assert list(manifest.splits) == ["train"]
    assert ids(manifest.split("train")) == [1, 2, 3, 4], "5 is validation, 6 and 7 are test"
    # The images are those of 2014 under their names of then.
    assert manifest.images("train")[3] == data / "coco/val2014" / name_2014(4)
    files = sorted(Path(name).name for name in manifest.annotations)
    assert files == ["captions_train2017.json", "dataset_coco.json"]


def test_vqav2_is_scored_on_its_validation_questions(data: Path) -> None:
    manifest = load_folder(settings("vqav2"), data / "coco")
    assert manifest.kind == "vqa"
    assert set(ids(manifest.split("train"))) == {1, 2, 3}
    assert set(ids(manifest.split("val"))) == set(ids(manifest.split("test"))) == {4, 5, 6, 7}


def test_okvqa_takes_the_answers_that_people_gave(data: Path, tmp_path: Path) -> None:
    prepare_dataset(DATASETS / "okvqa.yaml", tmp_path / "out", data_root=data / "coco")
    manifest = read_manifest(tmp_path / "out/manifest.json")
    assert set(manifest.splits) == {"val", "test"}
    questions = manifest.split("test")
    assert getattr(questions[0], "answers") == ("noises",) * 10  # noqa: B009
    # What predictions are scored against is a pair of files that the scorer reads.
    predictions = [
        {"question_id": getattr(item, "question_id"), "answer": ("noises", "x")[n % 2]}  # noqa: B009
        for n, item in enumerate(questions)
    ]
    write_json(tmp_path / "p.json", predictions)
    references = tmp_path / "out/references"
    files = [references / f"test_{name}.json" for name in ("questions", "annotations")]
    scores = score_vqa(*files, tmp_path / "p.json", tmp_path / "s.json")
    assert scores["metrics"]["accuracy"] == pytest.approx(50.0)


def test_pope_keeps_its_three_files_apart(data: Path) -> None:
    manifest = load_folder(settings("pope"), data / "coco")
    found = [getattr(item, "category") for item in manifest.split("test")]  # noqa: B009
    assert found == ["random"] * 4 + ["popular"] * 4 + ["adversarial"] * 4


def test_a_subset_is_drawn_by_seed(data: Path) -> None:
    chosen = settings("llava-instruct").model_copy(update={"sample": {"train": 4}})
    one, two = (load_folder(chosen, data / "coco").split("train") for _ in range(2))
    assert one == two and len(one) == 4
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
        ("vqav2", "coco/val2014/" + name_2014(6), "COCO_.*000000000006"),
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
    assert ids(load_folder(settings("coco"), own).split("test")) == [6, 7]
    assert ids(load_folder(settings("coco-calibration"), own).split("train")) == [1, 2, 3, 4]
