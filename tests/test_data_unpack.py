"""Files put in place: unpacked from bad archives, linked, copied, or checked where they are."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import stat
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gapinit.data.unpack import unpack
from gapinit.errors import GapinitError

from .file_server import JPEG, PHOTO, Site, Table, jpeg, zipped

DiskUsage = namedtuple("DiskUsage", "total used free")
Place = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sync", lambda: None)


@pytest.fixture
def place(table: Table, results: Path) -> Place:
    """Return a function that unpacks an archive of these bytes as one of the table's entries."""

    def put(content: bytes, name: str = "images") -> dict[str, Any]:
        archive, stamp = results / "archive.zip", results / "stamps" / f"{name}.json"
        archive.write_bytes(content)
        table.write(images={"sha256": None, "bytes": None})
        unpack(name, table.path, results / "data", stamp, archive=archive)
        return json.loads(stamp.read_text())

    return put


def unpack_error(place: Place, content: bytes, **options: Any) -> str:
    with pytest.raises(GapinitError) as caught:
        place(content, **options)
    return str(caught.value)


def test_an_archive_is_unpacked(site: Site, place: Place, results: Path) -> None:
    stamp = place(site.files["train2014.zip"])
    assert (results / "data" / "coco" / JPEG).read_bytes() == PHOTO
    assert not (results / "data" / "coco" / "__MACOSX").exists()
    digest = hashlib.sha256(site.files["train2014.zip"]).hexdigest()
    head = {"name": "images", "folder": "coco", "archive": "archive.zip", "sha256": digest}
    assert stamp == {**head, "files": 1, "bytes": len(PHOTO)}


def test_a_plain_file_is_linked_or_copied(
    site: Site,
    place: Place,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = site.files["coco_pope_random.json"]
    placed = results / "data" / "coco" / "pope" / "coco_pope_random.json"
    assert place(content, "pope")["files"] == 1
    assert placed.read_bytes() == content and placed.samefile(results / "archive.zip")
    place(content, "pope")

    def no_links(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    placed.unlink()
    place(content, "pope")
    assert placed.read_bytes() == content and not placed.samefile(results / "archive.zip")
    assert [path.name for path in placed.parent.iterdir()] == [placed.name]
    placed.write_bytes(b"spoilt")
    place(content, "pope")
    assert placed.read_bytes() == content


@pytest.mark.parametrize(
    "name",
    ["../out.jpg", "train2014/../../out.jpg", "/tmp/out.jpg", "C:\\out.jpg", "a\\..\\b", "."],
)
def test_no_member_leaves_the_folder(place: Place, results: Path, name: str) -> None:
    text = unpack_error(place, zipped({JPEG: b"x", name: b"out"}))
    assert f"member '{name}'" in text and "nothing unpacked" in text
    assert list((results / "data").rglob("*.jpg")) == []
    assert list(results.rglob("out.jpg")) == []


def special(name: str, kind: int = stat.S_IFREG) -> bytes:
    """Return an archive of a photograph and a second member, of some kind."""
    member = zipfile.ZipInfo(name)
    member.external_attr = (kind | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(JPEG, b"x")
        archive.writestr(member, "/etc/passwd")
    return buffer.getvalue()


def encrypted() -> bytes:
    content = bytearray(zipped({JPEG: b"x"}))
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (special("link", stat.S_IFLNK), "'link' is a link or another special file"),
        (special("pipe", stat.S_IFIFO), "'pipe' is a link or another special file"),
        (special(f"./{JPEG}"), f"'./{JPEG}' occurs twice"),
        (encrypted(), "is encrypted"),
    ],
)
def test_a_special_member_is_refused(
    place: Place, results: Path, content: bytes, problem: str
) -> None:
    assert problem in unpack_error(place, content)
    assert not (results / "data" / "coco" / "train2014").exists()


def test_a_bomb_is_refused_by_its_declared_size(
    place: Place, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**6, 0, 10**6))
    text = unpack_error(place, zipped({JPEG: bytes(2 * 10**6)}))
    assert "1.0 MB are free" in text and "needs 2.0 MB" in text
    assert not (results / "data" / "coco" / "train2014").exists()


def test_a_bomb_that_declares_too_little_is_stopped(place: Place, results: Path) -> None:
    content = bytearray(zipped({JPEG: bytes(10**6)}))
    at = content.index(b"PK\1\2") + 24
    assert int.from_bytes(content[at : at + 4], "little") == 10**6
    for declared in (1000, 2 * 10**6):
        content[at : at + 4] = declared.to_bytes(4, "little")
        assert "not a whole zip archive" in unpack_error(place, bytes(content))
        assert list((results / "data" / "coco").rglob("*.*")) == []


def test_a_damaged_archive_is_named(place: Place, results: Path, site: Site) -> None:
    whole = site.files["train2014.zip"]
    flipped = bytearray(whole)
    flipped[1000] ^= 255
    for content in (b"", b"<html>not found</html>", whole[:-30], whole[:1000], bytes(flipped)):
        text = unpack_error(place, content)
        assert f"{results / 'archive.zip'}: not a whole zip archive" in text
        assert list((results / "data" / "coco").rglob("*.jpg*")) == []


def test_no_damage_is_a_traceback(place: Place, results: Path) -> None:
    whole = zipped({"train2014/a.jpg": b"some bytes, some bytes, some bytes", "train2014/b": b"b"})
    generator = random.Random(0)
    for at in range(0, len(whole), 7):
        content = bytearray(whole)
        content[at] ^= generator.randrange(1, 256)
        shutil.rmtree(results / "data", ignore_errors=True)
        try:
            place(bytes(content))
        except GapinitError as error:
            assert str(results) in str(error)
        assert not list(results.rglob("*.partial"))


def test_another_file_of_the_same_size_is_replaced(place: Place, results: Path) -> None:
    target = results / "data" / "coco" / JPEG
    for _ in range(2):
        place(zipped({JPEG: PHOTO}))
        assert target.read_bytes() == PHOTO
        target.write_bytes(bytes(len(PHOTO)))


def test_what_the_table_promises_must_be_there(place: Place, results: Path) -> None:
    text = unpack_error(place, zipped({"val2014/COCO_val2014_000000000042.jpg": b"x"}))
    assert f"{results / 'data' / 'coco' / 'train2014'}" in text and "does not contain" in text
    assert not (results / "stamps" / "images.json").exists()


def test_a_wrong_or_missing_archive_is_told(site: Site, table: Table, results: Path) -> None:
    stamp, other = results / "stamp.json", results / "other.zip"
    other.write_bytes(site.files["caption_datasets.zip"])
    for archive, message in (
        (None, "`gapinit data retrieve --name images`"),
        (results / "no.zip", "no such file. `gapinit data retrieve --name images`"),
        (other, "wrong SHA-256, expected"),
    ):
        with pytest.raises(GapinitError, match=message):
            unpack("images", table.write(), results / "data", stamp, archive)
    assert not stamp.exists()


def test_what_is_done_by_hand_is_checked(table: Table, results: Path) -> None:
    stamp, data = results / "stamp.json", results / "data"
    images = data / "flickr30k" / "flickr30k-images"

    def check(**options: Any) -> str:
        with pytest.raises(GapinitError) as caught:
            unpack("form", table.write(), data, stamp, **options)
        return str(caught.value)

    assert f"put flickr30k-images/ into {data / 'flickr30k'}." in check()
    images.mkdir(parents=True)
    assert "no file in flickr30k-images" in check()
    assert "takes no archive" in check(archive=results / "a.zip")
    (images / "1000092795.jpg").write_bytes(jpeg())
    unpack("form", table.path, data, stamp)
    head = {"name": "form", "folder": "flickr30k", "sha256": None}
    assert json.loads(stamp.read_text()) == {**head, "files": 1, "bytes": len(jpeg())}


def test_a_file_in_the_way_is_an_error(place: Place, results: Path, site: Site) -> None:
    (results / "data" / "coco").mkdir(parents=True)
    (results / "data" / "coco" / "train2014").write_text("")
    text = unpack_error(place, site.files["train2014.zip"])
    assert "train2014" in text and str(results / "archive.zip") in text
