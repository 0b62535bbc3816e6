"""The files have the real formats, and the loaders read the real formats."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from gapinit.artifacts.artifacts import read_json, sha256
from gapinit.data.captions import CaptionedImage, load_coco_captions, load_karpathy
from gapinit.data.check import require_pairs
from gapinit.data.dataset import prepare_dataset
from gapinit.data.defects import Defects
from gapinit.data.manifest import Manifest, read_manifest, write_manifest
from gapinit.data.pretraining import read_pretraining
from gapinit.errors import GapinitError

from .plain_json import forget_digests, write_json

REPOSITORY = Path(__file__).resolve().parents[1]
DATASETS = REPOSITORY / "config" / "datasets"
LOCAL = DATASETS / "local.yaml"


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared("scenes-test", tmp_path_factory)


@pytest.fixture(scope="module")
def flickr30k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared("scenes-test-ood", tmp_path_factory)


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared("scenes-test-pretraining", tmp_path_factory)


def prepared(name: str, factory: pytest.TempPathFactory) -> Path:
    output = factory.mktemp(name)
    prepare_dataset(DATASETS / f"{name}.yaml", output)
    return output


def pycocotools_reads(path: Path) -> Any:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_karpathy_json_has_the_keys_of_the_real_one(coco: Path) -> None:
    content = read_json(coco / "dataset_coco.json")
    assert set(content) == {"images", "dataset"} and content["dataset"] == "coco"
    keys = {"filepath", "sentids", "filename", "imgid", "split", "sentences", "cocoid"}
    for entry in content["images"]:
        assert set(entry) == keys
        assert entry["filename"] == f"COCO_{entry['filepath']}_{entry['cocoid']:012d}.jpg"
        assert (entry["filepath"] == "train2014") == (entry["split"] == "train")
        assert (coco / "images" / entry["filepath"] / entry["filename"]).is_file()
        assert [s["sentid"] for s in entry["sentences"]] == entry["sentids"]
        for sentence in entry["sentences"]:
            assert set(sentence) == {"tokens", "raw", "imgid", "sentid"}
            assert sentence["imgid"] == entry["imgid"]
            assert sentence["tokens"] == sentence["raw"].split()
    splits = [entry["split"] for entry in content["images"]]
    counts = {split: splits.count(split) for split in set(splits)}
    assert counts == {"train": 100, "restval": 20, "val": 20, "test": 24}


@pytest.mark.parametrize("split", ["train2014", "val2014"])
def test_coco_captions_are_read_by_pycocotools(coco: Path, split: str) -> None:
    path = coco / "annotations" / f"captions_{split}.json"
    content = read_json(path)
    assert set(content) == {"info", "licenses", "images", "annotations"}
    assert {key for note in content["annotations"] for key in note} == {"id", "image_id", "caption"}
    reader = pycocotools_reads(path)
    folder = coco / "images" / split
    assert sorted(image["file_name"] for image in reader.imgs.values()) == sorted(
        file.name for file in folder.iterdir()
    )
    for image_id in reader.getImgIds():
        notes = reader.loadAnns(reader.getAnnIds(imgIds=[image_id]))
        assert len({note["caption"] for note in notes}) == 5


def test_the_two_loaders_agree(coco: Path) -> None:
    by_karpathy = load_karpathy(coco / "dataset_coco.json", coco, Defects())
    by_coco = [
        image
        for split in ("train", "val")
        for image in load_coco_captions(
            coco / "annotations" / f"captions_{split}2014.json", coco, split, Defects()
        )
    ]
    assert len(by_karpathy) == len(by_coco) == 164

    def facts(images: list[CaptionedImage]) -> dict[int, tuple[Path, tuple[str, ...]]]:
        return {image.image_id: (image.path.resolve(), image.captions) for image in images}

    assert facts(by_karpathy) == facts(by_coco)


def test_splits_are_disjoint_in_ids_files_and_bytes(coco: Path, flickr30k: Path) -> None:
    seen: dict[str, tuple[Path, str]] = {}
    for folder in (coco, flickr30k):
        ids: list[int] = []
        for split, images in read_manifest(folder / "manifest.json").splits.items():
            for image in images:
                assert image.split == split
                assert seen.setdefault(sha256(image.path), (folder, split)) == (folder, split)
            ids += [image.image_id for image in images]
        assert len(ids) == len(set(ids))


def test_flickr30k_has_the_layout_of_the_real_one(flickr30k: Path) -> None:
    content = read_json(flickr30k / "dataset_flickr30k.json")
    assert set(content) == {"images", "dataset"} and content["dataset"] == "flickr30k"
    loaded = load_karpathy(flickr30k / "dataset_flickr30k.json", flickr30k, Defects())
    for entry, image in zip(content["images"], loaded, strict=True):
        assert set(entry) == {"sentids", "imgid", "sentences", "split", "filename"}
        assert entry["filename"].removesuffix(".jpg").isdigit()
        assert image.image_id == entry["imgid"]
        assert image.path == flickr30k / "flickr30k-images" / entry["filename"]
        assert list(image.captions) == [sentence["raw"] for sentence in entry["sentences"]]


def test_pretraining_folder(pretraining: Path) -> None:
    pairs, corpus = read_pretraining(pretraining, Defects())
    assert (len(pairs), len(corpus)) == (600, 1500)
    assert len({path for path, _ in pairs}) == 300
    assert all(path.is_file() for path, _ in pairs)
    first = json.loads((pretraining / "alt_text.jsonl").read_text().splitlines()[0])
    assert first == {"image": f"images/{pairs[0][0].name}", "text": pairs[0][1]}
    manifest = read_json(pretraining / "manifest.json")
    assert manifest["kind"] == "pretraining"
    assert manifest["counts"] == {"images": 300, "alt_texts": 600, "corpus_lines": 1500}
    assert manifest["annotations"]["corpus.txt"] == sha256(pretraining / "corpus.txt")
    with pytest.raises(GapinitError, match="expected a dataset manifest of kind captions"):
        read_manifest(pretraining / "manifest.json")


@pytest.mark.parametrize("split", ["val", "test"])
def test_references_hold_the_captions_of_the_split(coco: Path, split: str) -> None:
    images = read_manifest(coco / "manifest.json").captions(split)
    reader = pycocotools_reads(coco / f"references/{split}.json")
    assert sorted(reader.getImgIds()) == sorted(image.image_id for image in images)
    for image in images:
        notes = reader.imgToAnns[image.image_id]
        assert tuple(note["caption"] for note in notes) == image.captions


def test_manifest_survives_a_move_of_its_folder(coco: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    os.rename(coco, moved)
    try:
        manifest = read_manifest(moved / "manifest.json")
        assert all(image.path.is_file() for images in manifest.splits.values() for image in images)
    finally:
        os.rename(moved, coco)


def test_manifest_round_trip(tmp_path: Path) -> None:
    image = CaptionedImage(7, tmp_path / "data" / "x" / "a.jpg", ("one", "zwei \u00fc"), "train")
    for target in (tmp_path / "data" / "manifest.json", tmp_path / "elsewhere" / "manifest.json"):
        manifest = Manifest("m", tmp_path / "data", {"a.json": "0"}, {"train": [image]}, "abc")
        write_manifest(target, manifest)
        read = read_manifest(target)
        assert read.splits == {"train": [image]}
        assert (read.name, read.annotations, read.images_digest) == ("m", {"a.json": "0"}, "abc")


def test_another_picture_under_the_same_name_is_another_dataset(tmp_path: Path) -> None:
    folder = small_coco(tmp_path / "data")
    digests = []
    for shade in (10, 10, 200):
        Image.new("RGB", (16, 16), (shade, 0, 0)).save(folder / "images" / "1.png")
        prepare_dataset(LOCAL, tmp_path / "out", data_root=folder)
        digests.append(read_manifest(tmp_path / "out" / "manifest.json").images_digest)
    assert digests[0] == digests[1] != digests[2]


def small_coco(folder: Path, count: int = 10, file: str = "annotations/captions.json") -> Path:
    """Write a captions file for `count` images, whose name is not one that is looked for."""
    (folder / "images").mkdir(parents=True)
    for number in range(1, count + 1):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / "images" / f"{number}.png")
    content = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(1, count + 1)],
        "annotations": [
            {"id": n, "image_id": n, "caption": f" caption\r\n of\u2028 {n} "}
            for n in range(1, count + 1)
        ],
    }
    write_json(folder / file, content)
    write_json(folder / "annotations" / "captions_train2017.json", content)
    shifted = json.loads(json.dumps(content))
    for entry in (*shifted["images"], *shifted["annotations"]):
        key = "id" if "file_name" in entry else "image_id"
        entry[key] += 100
    write_json(folder / "annotations" / "captions_val2017.json", shifted)
    return folder


def test_a_single_captions_file_is_split_by_the_seed(tmp_path: Path) -> None:
    folder = small_coco(tmp_path / "data")
    outputs = []
    for number, seed in enumerate((42, 42, 43)):
        config = tmp_path / f"{number}.yaml"
        config.write_text(yaml.safe_dump({"name": "mine", "seed": seed}))
        output = tmp_path / f"out{number}"
        # A relative path that only exists below data_root.
        file = Path("annotations/captions.json")
        prepare_dataset(config, output, data_root=folder, annotations=file)
        outputs.append(read_manifest(output / "manifest.json").splits)
    ids = [{s: [i.image_id for i in found] for s, found in splits.items()} for splits in outputs]
    assert ids[0] == ids[1] != ids[2]
    assert (len(ids[0]["train"]), len(ids[0]["test"])) == (8, 2)
    assert ids[0]["val"] == ids[0]["test"]
    assert sorted(ids[0]["train"] + ids[0]["test"]) == list(range(1, 11))


def test_white_space_in_captions_is_collapsed(tmp_path: Path) -> None:
    folder = small_coco(tmp_path / "data")
    images = load_coco_captions(
        folder / "annotations" / "captions.json", folder, "train", Defects()
    )
    assert [image.captions for image in images[:2]] == [("caption of 1",), ("caption of 2",)]


def test_val_file_becomes_the_test_split(tmp_path: Path) -> None:
    folder = small_coco(tmp_path / "data")
    prepare_dataset(LOCAL, tmp_path / "out", data_root=folder)
    manifest = read_manifest(tmp_path / "out" / "manifest.json")
    assert [image.image_id for image in manifest.split("train")] == list(range(1, 11))
    assert [image.image_id for image in manifest.split("test")] == list(range(101, 111))
    assert {image.path for image in manifest.split("val")} == {
        image.path for image in manifest.split("test")
    }
    assert set(manifest.annotations) == {
        "annotations/captions_train2017.json",
        "annotations/captions_val2017.json",
    }


@pytest.mark.parametrize("place", ["", "images", "train2014", "images/train2014", "train2017"])
def test_images_are_found_in_the_usual_places(tmp_path: Path, place: str) -> None:
    short = "000000000009.jpg"
    name = short if place.endswith("2017") else f"COCO_train2014_{short}"
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(tmp_path / place / name)
    entry = {
        "filepath": "train2014",
        "filename": f"COCO_train2014_{short}",
        "imgid": 0,
        "cocoid": 9,
        "split": "train",
        "sentences": [{"raw": "a cat", "tokens": ["a", "cat"], "imgid": 0, "sentid": 0}],
    }
    write_json(tmp_path / "k.json", {"images": [entry], "dataset": "coco"})
    (image,) = load_karpathy(tmp_path / "k.json", tmp_path, Defects())
    assert image.path == tmp_path / place / name
    content = {
        "images": [{"id": 9, "file_name": name}],
        "annotations": [{"id": 1, "image_id": 9, "caption": "a cat"}],
    }
    write_json(tmp_path / "c.json", content)
    (other,) = load_coco_captions(tmp_path / "c.json", tmp_path, "train", Defects())
    assert other.path == image.path


def test_require_pairs(coco: Path) -> None:
    manifest = read_manifest(coco / "manifest.json")
    require_pairs(manifest, "train", 120)
    message = "needs 121 image-caption pairs, found 120 images in the split 'train'"
    with pytest.raises(GapinitError, match=message):
        require_pairs(manifest, "train", 121)
    with pytest.raises(GapinitError, match="no split 'trian' .it has: train, val, test"):
        require_pairs(manifest, "trian", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "found kind None"),
        ({"kind": "captions", "manifest_version": 99}, "manifest version 99, expected 2"),
        ({"kind": "captions", "manifest_version": 2, "name": "x"}, "damaged dataset manifest"),
    ],
)
def test_a_foreign_manifest_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    write_json(tmp_path / "manifest.json", content)
    with pytest.raises(GapinitError, match=message):
        read_manifest(tmp_path / "manifest.json")


def test_a_manifest_may_not_name_files_outside_its_root(tmp_path: Path) -> None:
    image = CaptionedImage(7, tmp_path / "a.jpg", ("one",), "train")
    path = tmp_path / "manifest.json"
    write_manifest(path, Manifest("m", tmp_path, {}, {"train": [image]}))
    forget_digests(path)
    path.write_text(path.read_text().replace('"a.jpg"', '"../../a.jpg"'))
    with pytest.raises(GapinitError, match="leaves the root"):
        read_manifest(path)


def coco_sample() -> Path:
    named = os.environ.get("GAPINIT_COCO_SAMPLE")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data" / "coco-sample"
    if not folder.is_dir():
        pytest.skip(f"100 real COCO photographs are not in {folder} (set GAPINIT_COCO_SAMPLE)")
    return folder


def test_real_coco_photographs(tmp_path: Path) -> None:
    folder = coco_sample()
    prepare_dataset(LOCAL, tmp_path / "out", data_root=folder)
    manifest = read_manifest(tmp_path / "out" / "manifest.json")
    assert {split: len(images) for split, images in manifest.splits.items()} == {
        "train": 50,
        "val": 50,
        "test": 50,
    }
    # Read again by another program, white space aside.
    content = read_json(folder / "annotations" / "captions_val2017.json")
    content.pop("categories", None)
    write_json(tmp_path / "plain.json", content)
    reader = pycocotools_reads(tmp_path / "plain.json")
    for image in manifest.captions("test"):
        assert image.path.name == reader.imgs[image.image_id]["file_name"]
        captions = [note["caption"] for note in reader.imgToAnns[image.image_id]]
        assert [" ".join(text.split()) for text in captions] == list(image.captions)
        assert len(captions) >= 5
