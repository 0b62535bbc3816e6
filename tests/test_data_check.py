"""Each defect of a dataset stops the data stage with one message that names file and entry."""

from __future__ import annotations

import builtins
import copy
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gapinit.data.captions import load_coco_captions, load_karpathy
from gapinit.data.check import check_images, size_problem
from gapinit.data.dataset import prepare_dataset
from gapinit.data.defects import Defects
from gapinit.data.locate import leaves_root
from gapinit.data.pretraining import read_alt_text, read_corpus
from gapinit.errors import GapinitError

LOCAL = Path(__file__).resolve().parents[1] / "config" / "datasets" / "local.yaml"
Edit = Callable[[dict[str, Any]], Any]


def write_json(path: Path, content: Any) -> None:
    """Write JSON as others do: without a digest beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


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
    prepare_dataset(LOCAL, output, data_root=folder, annotations=annotations, progress=False)
    return output / "manifest.json"


def failure(folder: Path, annotations: Path | None = None) -> str:
    with pytest.raises(GapinitError) as caught:
        prepare(folder, annotations)
    assert not (folder.parent / "out" / "manifest.json").exists()
    return str(caught.value)


def edit(path: Path, change: Edit) -> None:
    content = json.loads(path.read_text())
    replaced = change(content)
    path.write_text(json.dumps(content if replaced is None else replaced))


def test_the_good_folder_passes(folder: Path) -> None:
    assert prepare(folder).is_file()
    assert prepare(folder, Path("karpathy.json")).is_file()


def image(**changes: Any) -> Edit:
    return lambda content: content["images"][1].update(changes)


def note(**changes: Any) -> Edit:
    return lambda content: content["annotations"][1].update(changes)


def without(group: str, key: str) -> Edit:
    return lambda content: content[group][1].pop(key) and None


COCO_DEFECTS: dict[str, tuple[Edit, str]] = {
    "top level": (lambda c: [1, 2], "expected an object at the top level, found a list of 2"),
    "null": (lambda c: "null", "expected an object at the top level, found 'null'"),
    "number": (lambda c: 3, "expected an object at the top level, found 3"),
    "images missing": (lambda c: c.pop("images") and None, "expected the key 'images'"),
    "images no list": (lambda c: c.update(images={}), "'images': expected a list, found an object"),
    "notes no list": (lambda c: c.update(annotations=7), "'annotations': expected a list, found 7"),
    "entry no object": (
        lambda c: c["images"].append(None),
        "images[4]: expected an object, found null",
    ),
    "file_name missing": (without("images", "file_name"), "images[1]: the key 'file_name' is miss"),
    "file_name type": (image(file_name=3), "images[1]: 'file_name': expected a string, found 3"),
    "file_name empty": (image(file_name=""), "images[1]: 'file_name': expected a file name"),
    "id type": (image(id="x"), "images[1]: 'id': expected a whole number, found 'x'"),
    "id bool": (image(id=True), "images[1]: 'id': expected a whole number, found true"),
    "id huge": (image(id=2**70), "images[1]: 'id': expected a number of at most 64 bits"),
    "missing image": (image(file_name="no.jpg"), "images[1]: names the image 'no.jpg', which is"),
    "parent": (image(file_name="../data/images/1.png"), "images[1]: the file name '../data/images"),
    "absolute": (image(file_name="/etc/passwd"), "'/etc/passwd' leaves the image root"),
    "duplicate image": (image(id=0), "images[1]: duplicate image id 0, already used by images[0]"),
    "duplicate note": (note(id=0), "annotations[1]: duplicate annotation id 0, already used by"),
    "empty caption": (note(caption=" \n\t"), "annotations[1]: 'caption': the caption is empty"),
    "caption type": (note(caption=None), "'caption': expected a string, found null"),
    "half a character": (note(caption="a \ud800"), "found half of a character pair"),
    "unknown image": (note(image_id=99), "annotations[1]: 'image_id': 99 is no entry of 'images'"),
    "image without caption": (
        lambda c: c["annotations"].pop(1) and None,
        "images[1]: image 1 has no caption",
    ),
    "no images": (
        lambda c: c.update(images=[], annotations=[]),
        "split 'train': has no images, expected at least 1",
    ),
}


@pytest.mark.parametrize("name", COCO_DEFECTS)
def test_a_defect_of_a_coco_captions_file_is_named(folder: Path, name: str) -> None:
    change, expected = COCO_DEFECTS[name]
    path = folder / "annotations" / "captions_train2017.json"
    edit(path, change)
    message = failure(folder)
    assert expected in message
    assert "captions_train2017.json" in message
    # The loader on its own says the same, apart from what only the dataset as a whole can tell.
    if name != "no images":
        with pytest.raises(GapinitError, match=re.escape(expected)):
            load_coco_captions(path, folder, "train")


def entry(**changes: Any) -> Edit:
    return lambda content: content["images"][1].update(changes)


KARPATHY_DEFECTS: dict[str, tuple[Edit, str]] = {
    "no format": (lambda c: c.update(images=[{"id": 1}]), "expected COCO captions (keys 'images'"),
    "split unknown": (entry(split="dev"), "images[1]: 'split': expected one of train, restval"),
    "split missing": (without("images", "split"), "images[1]: the key 'split' is missing"),
    "filename missing": (without("images", "filename"), "the key 'filename' is missing"),
    "filename empty": (entry(filename=""), "'filename': expected a file name, found ''"),
    "imgid missing": (without("images", "imgid"), "the key 'imgid' is missing"),
    "cocoid type": (entry(cocoid=1.5), "'cocoid': expected a whole number, found 1.5"),
    "filepath leaves": (entry(filepath="../x"), "the file name '../x' leaves the image root"),
    "sentences type": (entry(sentences="a"), "'sentences': expected a list, found 'a'"),
    "no sentences": (entry(sentences=[]), "images[1]: 'sentences': the image has no caption"),
    "empty": (entry(sentences=[{"raw": " "}]), "images[1].sentences[0]: 'raw': the caption is emp"),
    "raw missing": (entry(sentences=[{}]), "images[1].sentences[0]: the key 'raw' is missing"),
    "duplicate image": (entry(imgid=0), "images[1]: duplicate image id 0"),
    "duplicate sentence": (
        entry(sentences=[{"raw": "a", "sentid": 0}]),
        "images[1].sentences[0]: duplicate annotation id (sentid) 0",
    ),
    "no test": (
        lambda c: c.update(images=[i for i in c["images"] if i["split"] != "test"]),
        "split 'test': has no images",
    ),
}


@pytest.mark.parametrize("name", KARPATHY_DEFECTS)
def test_a_defect_of_a_karpathy_file_is_named(folder: Path, name: str) -> None:
    change, expected = KARPATHY_DEFECTS[name]
    edit(folder / "karpathy.json", change)
    message = failure(folder, Path("karpathy.json"))
    assert expected in message
    assert "karpathy.json" in message


def test_text_that_is_no_json(folder: Path) -> None:
    for text in ('{"images": [', "[" * 100_000, "\0"):
        (folder / "karpathy.json").write_text(text)
        assert "karpathy.json: not" in failure(folder, Path("karpathy.json"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def damage(path: Path) -> None:
    path.write_bytes(b"this is no image")


def postscript(path: Path) -> None:
    Image.new("RGB", (32, 32)).save(path, "EPS")


def size(width: int, height: int) -> Callable[[Path], None]:
    return lambda path: Image.new("RGB", (width, height)).save(path)


IMAGE_DEFECTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "damaged image"),
    "no image": (damage, "damaged image, or none of JPEG"),
    "empty": (lambda path: path.write_bytes(b""), "damaged image"),
    "EPS": (postscript, "none of JPEG"),
    "too small": (size(32, 4), "too small: 32 x 4 pixels, expected at least 8"),
    "too narrow": (size(2000, 9), "too narrow: 2000 x 9 pixels"),
}


@pytest.mark.parametrize("name", IMAGE_DEFECTS)
def test_a_defective_image_is_named(folder: Path, name: str) -> None:
    change, expected = IMAGE_DEFECTS[name]
    change(folder / "images" / "6.png")
    message = failure(folder)
    assert expected in message and "images/6.png" in message
    assert "\n" not in message  # told once, though the image is in two splits


def test_a_truncated_jpeg_is_named(folder: Path) -> None:
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    buffer = io.BytesIO()
    noise.save(buffer, "JPEG")
    (folder / "images" / "6.png").write_bytes(buffer.getvalue()[:-300])
    assert "6.png: damaged image (OSError: image file is truncated" in failure(folder)


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


def test_good_images_are_hashed_and_checked_once(folder: Path) -> None:
    paths = [folder / "images" / f"{number}.png" for number in (0, 1, 0)]
    defects = Defects()
    assert len(check_images(paths, defects)) == 2
    assert len(defects) == 0


def test_many_defects_are_listed_up_to_twenty(folder: Path) -> None:
    def drop_all(content: dict[str, Any]) -> None:
        content.update(coco(range(1000, 1025)))

    edit(folder / "annotations" / "captions_train2017.json", drop_all)
    message = failure(folder)
    assert message.startswith("25 defects in the dataset:\n")
    assert message.count("names the image") == 20
    assert message.endswith("and 5 more")


def test_defects_of_both_files_are_listed_together(folder: Path) -> None:
    for split in ("train", "val"):
        edit(folder / "annotations" / f"captions_{split}2017.json", note(caption=""))
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
        prepare_dataset(LOCAL, tmp_path / "out", progress=False)
    with pytest.raises(GapinitError, match=r"none\.yaml: no such file"):
        prepare_dataset(tmp_path / "none.yaml", tmp_path / "out", progress=False)
    scenes = LOCAL.with_name("scenes-test.yaml")
    with pytest.raises(GapinitError, match="is generated and takes no data_root"):
        prepare_dataset(scenes, tmp_path / "out", data_root=folder, progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(GapinitError, match="cannot be written"):
        prepare_dataset(LOCAL, tmp_path / "file" / "out", data_root=folder, progress=False)


def test_an_unknown_key_of_the_dataset_file_is_named(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("name: mine\nanotations: x.json\n")
    with pytest.raises(GapinitError, match="mine.yaml: unknown key 'anotations' .did you mean"):
        prepare_dataset(config, tmp_path / "out", data_root=folder, progress=False)


@pytest.mark.parametrize(
    "name", ["../a.jpg", "a/../../b.jpg", "/a.jpg", "C:\\a.jpg", "..\\a.jpg", "\\\\host\\a", "a\0b"]
)
def test_names_that_leave_the_root(name: str) -> None:
    assert leaves_root(name)


@pytest.mark.parametrize("name", ["a.jpg", "train2017/a.jpg", "a..b.jpg", "...jpg", "./a.jpg"])
def test_names_that_stay_below_the_root(name: str) -> None:
    assert not leaves_root(name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: expected an object, found a list of 0"),
        ('{"image": "a.png"}', "line 2: the key 'text' is missing"),
        ('{"image": "a.png", "text": " "}', "line 2: 'text': the caption is empty"),
        ('{"image": "b.png", "text": "b"}', "line 2: names the image 'b.png'"),
        ('{"image": "../a.png", "text": "b"}', "line 2: the file name '../a.png' leaves"),
    ],
)
def test_defects_of_alt_texts_are_named(tmp_path: Path, line: str, message: str) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    good = '{"image": "a.png", "text": "a"}\n'
    (tmp_path / "alt_text.jsonl").write_text(good)
    assert read_alt_text(tmp_path) == [(tmp_path / "a.png", "a")]
    (tmp_path / "alt_text.jsonl").write_text(good + line + "\n")
    with pytest.raises(GapinitError, match=re.escape(message)):
        read_alt_text(tmp_path)


def test_a_corpus_must_hold_text(tmp_path: Path) -> None:
    with pytest.raises(GapinitError, match=r"corpus\.txt: no such file"):
        read_corpus(tmp_path)
    (tmp_path / "corpus.txt").write_text("\n \n")
    with pytest.raises(GapinitError, match="expected at least 1 line, found none"):
        read_corpus(tmp_path)
    (tmp_path / "corpus.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(GapinitError, match="not valid UTF-8"):
        read_corpus(tmp_path)
    (tmp_path / "corpus.txt").write_text("one\n\ntwo\n")
    assert read_corpus(tmp_path) == ["one", "two"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
GOOD = {"coco": coco(range(2)), "karpathy": karpathy(range(2))}


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
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_is_loaded_or_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    content = copy.deepcopy(GOOD[kind])
    path = data.draw(st.sampled_from(places(content)))
    holder: Any = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(JSON)
    root = tmp_path_factory.getbasetemp()
    for number in range(2):
        if not (root / f"{number}.png").exists():
            Image.new("RGB", (16, 16)).save(root / f"{number}.png")
    file = root / "fuzzed.json"
    file.write_text(json.dumps(content))
    try:
        if kind == "coco":
            load_coco_captions(file, root, "train")
        else:
            load_karpathy(file, root)
    except GapinitError as error:
        assert "fuzzed.json" in str(error)
