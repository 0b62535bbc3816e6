"""Each defect of a dataset stops the data stage with one message that names file and entry."""

from __future__ import annotations

import builtins
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gapinit.data.annotation_files import AnnotationFile, Format, read_samples
from gapinit.data.check import size_problem
from gapinit.data.dataset import prepare_dataset
from gapinit.data.defects import Defects
from gapinit.data.locate import leaves_root
from gapinit.errors import GapinitError

from .plain_json import write_json
from .test_data_conversations import llava
from .test_data_questions import POPE, vqa_contents

LOCAL = Path(__file__).resolve().parents[1] / "config" / "datasets" / "local.yaml"


def coco(ids: range) -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in ids],
        "annotations": [{"id": n, "image_id": n, "caption": f"caption {n}"} for n in ids],
    }


def karpathy(ids: range) -> dict[str, Any]:
    splits = ("train", "restval", "val", "test")
    return {
        "dataset": "flickr30k",
        "images": [
            {
                "filename": f"{n}.png",
                "imgid": n,
                "split": splits[n % 4],
                "sentences": [{"raw": f"caption {n}", "sentid": n}],
            }
            for n in ids
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a good dataset: 4 training and 4 validation images, and a Karpathy file over them."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    for number in range(8):
        noise = Image.effect_noise((32, 32), 60 + number).convert("RGB")
        noise.save(root / "images" / f"{number}.png")
    write_json(root / "annotations" / "captions_train2017.json", coco(range(4)))
    write_json(root / "annotations" / "captions_val2017.json", coco(range(4, 8)))
    write_json(root / "karpathy.json", karpathy(range(8)))
    return root


def prepare(folder: Path, annotations: Path | None = None) -> Path:
    output = folder.parent / "out"
    prepare_dataset(LOCAL, output, data_root=folder, annotations=annotations)
    return output / "manifest.json"


def failure(folder: Path, annotations: Path | None = None) -> str:
    with pytest.raises(GapinitError) as caught:
        prepare(folder, annotations)
    assert not (folder.parent / "out" / "manifest.json").exists()
    return str(caught.value)


def save(width: int, height: int, kind: str = "PNG") -> Callable[[Path], None]:
    return lambda path: Image.new("RGB", (width, height)).save(path, kind)


def half_a_jpeg(path: Path) -> None:
    Image.effect_noise((64, 64), 90).convert("RGB").save(path, "JPEG")
    os.truncate(path, path.stat().st_size - 300)


IMAGE_DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 400), "damaged image"),
    "truncated JPEG": (half_a_jpeg, "damaged image (OSError: image file is truncated"),
    "no image": (lambda path: path.write_bytes(b"no image"), "damaged image, or none of JPEG"),
    "EPS": (save(32, 32, "EPS"), "none of JPEG"),
    "too narrow": (save(2000, 9), "too narrow: 2000 x 9 pixels"),
}


@pytest.mark.parametrize("name", IMAGE_DEFECTS)
def test_a_defective_image_is_named(folder: Path, name: str) -> None:
    change, expected = IMAGE_DEFECTS[name]
    change(folder / "images" / "6.png")
    message = failure(folder)
    assert expected in message and "images/6.png" in message
    assert "\n" not in message  # told once, though the image is in two splits


def test_a_decompression_bomb_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (1000, 10):  # Pillow itself only warns of the first
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        message = failure(folder)
        assert "8 defects in the dataset" in message and "too many pixels" in message
    assert size_problem((100_000, 100_000), None) is None


def test_an_unreadable_image_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # File modes do not stop the super-user, so the refusal is played.
    real = builtins.open

    def refuse(file: Any, *arguments: Any, **options: Any) -> Any:
        if str(file).endswith("3.png"):
            raise PermissionError(13, "Permission denied")
        return real(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    assert failure(folder).endswith("3.png: cannot be read (Permission denied)")


def test_many_defects_are_listed_up_to_twenty(folder: Path) -> None:
    write_json(folder / "annotations" / "captions_train2017.json", coco(range(1000, 1025)))
    message = failure(folder)
    assert message.startswith("25 defects in the dataset:\n")
    assert message.count("names the image") == 20
    assert message.endswith("and 5 more")


def test_defects_of_both_files_are_listed_together(folder: Path) -> None:
    for split in ("train", "val"):
        content = coco(range(4) if split == "train" else range(4, 8))
        content["annotations"][1]["caption"] = ""
        write_json(folder / "annotations" / f"captions_{split}2017.json", content)
    message = failure(folder)
    assert message.startswith("2 defects")
    assert "captions_train2017.json: annotations[1]" in message
    assert "captions_val2017.json: annotations[1]" in message


def test_an_image_may_not_be_trained_on_and_tested_on(folder: Path) -> None:
    write_json(folder / "annotations" / "captions_val2017.json", coco(range(3, 8)))
    message = failure(folder)
    assert "3.png: image 3: is in the split 'train' and in 'test'" in message


def test_a_folder_without_annotations_says_what_was_looked_for(folder: Path) -> None:
    for path in (folder / "annotations").iterdir():
        path.unlink()
    message = failure(folder)
    for name in ("dataset_coco.json", "captions_train2017.json", "captions_val2014.json"):
        assert name in message
    assert str(folder / "annotations") in message


def test_half_a_pair_of_annotations_says_what_is_missing(folder: Path) -> None:
    (folder / "annotations" / "captions_val2017.json").unlink()
    message = failure(folder)
    assert message.startswith(str(folder / "annotations" / "captions_val2017.json"))
    assert "captions_train2017.json is there" in message


def test_wrong_places_are_named(folder: Path, tmp_path: Path) -> None:
    assert "no such folder" in failure(tmp_path / "nowhere" / "data")
    message = failure(folder, Path("wrong.json"))
    assert "annotations: no such file or folder (looked for wrong.json or " in message
    with pytest.raises(GapinitError, match="data_root is missing"):
        prepare_dataset(LOCAL, tmp_path / "out")
    with pytest.raises(GapinitError, match=r"none\.yaml: no such file"):
        prepare_dataset(tmp_path / "none.yaml", tmp_path / "out")
    scenes = LOCAL.with_name("scenes-test.yaml")
    with pytest.raises(GapinitError, match="is generated and takes no data_root"):
        prepare_dataset(scenes, tmp_path / "out", data_root=folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(GapinitError, match="cannot be written"):
        prepare_dataset(LOCAL, tmp_path / "file" / "out", data_root=folder)


@pytest.mark.parametrize(
    "name", ["../a.jpg", "a/../../b.jpg", "/a.jpg", "C:\\a.jpg", "..\\a.jpg", "\\\\host\\a", "a\0b"]
)
def test_names_that_leave_the_root(name: str) -> None:
    assert leaves_root(name)


@pytest.mark.parametrize("name", ["a.jpg", "train2017/a.jpg", "a..b.jpg", "...jpg", "./a.jpg"])
def test_names_that_stay_below_the_root(name: str) -> None:
    assert not leaves_root(name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
GOOD: dict[Format, list[Any]] = {
    "captions": [coco(range(2))],
    "karpathy": [karpathy(range(2))],
    "questions": list(vqa_contents()),
    "pope": [POPE],
    "conversations": [llava()],
}
"""The files of each format."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths to every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, child in inner:
        found.append((*path, key))
        if isinstance(child, dict | list):
            found += places(child, (*path, key))
    return found


@pytest.mark.parametrize("kind", GOOD)
@settings(max_examples=100)
@given(data=st.data())
def test_any_value_anywhere_is_loaded_or_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: Format, data: st.DataObject
) -> None:
    contents = copy.deepcopy(GOOD[kind])
    content = data.draw(st.sampled_from(contents))
    path = data.draw(st.sampled_from(places(content)))
    holder: Any = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(JSON)
    root = tmp_path_factory.getbasetemp()
    for number in range(2):
        if not (root / f"{number}.png").exists():
            Image.new("RGB", (16, 16)).save(root / f"{number}.png")
    files = [root / f"fuzzed{number}.json" for number in range(len(contents))]
    for file, written in zip(files, contents, strict=True):
        lines = written if kind == "pope" else [written]
        file.write_text("\n".join(map(json.dumps, lines)))
    defects = Defects()
    try:
        read_samples(AnnotationFile(files[0], kind, "train", files[-1]), root, defects)
    except GapinitError as error:
        assert "fuzzed" in str(error)
    assert all("fuzzed" in defect.file for defect in defects.found)
