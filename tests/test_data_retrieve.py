"""The table of downloads, and files fetched from a server that misbehaves."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from gapinit import progress
from gapinit.data.downloads import find_download, read_downloads
from gapinit.data.retrieve import CHUNK as PIECE
from gapinit.data.retrieve import ENOUGH, retrieve
from gapinit.errors import GapinitError

from .file_server import JPEG, Site, Table, jpeg, zipped

DiskUsage = namedtuple("DiskUsage", "total used free")
IMAGES = "train2014.zip"


def fetch(table: Path, name: str, output: Path, attempts: int = 3, **options: Any) -> Path:
    quick = {"waits_s": (0.001,) * (attempts - 1), "timeout_s": (2.0, 2.0)}
    retrieve(name, table, output, **{**quick, **options})
    return output


def refused(table: Path, name: str, output: Path, **options: Any) -> str:
    with pytest.raises(GapinitError) as caught:
        fetch(table, name, output, **options)
    return str(caught.value)


def beside(output: Path) -> list[str]:
    """Return the suffixes of the files beside the output, the lock left out."""
    names = (path.name.removeprefix(output.name) for path in output.parent.iterdir())
    return sorted(name for name in names if name != ".lock")


def test_the_table_of_the_repository_is_right(repository: Path) -> None:
    downloads = read_downloads(repository / "config" / "downloads.yaml")
    train = downloads["coco-train2014"]
    assert (train.file_name, train.bytes, train.unpack) == (IMAGES, 13510573713, True)
    assert downloads["pope-random"].unpack is False
    by_hand = [name for name, download in downloads.items() if download.manual is not None]
    assert by_hand == ["flickr30k-images"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha": "0" * 64}, "unknown key 'sha' (did you mean 'sha256'?)"),
        ({"sha256": "12ab"}, "key 'sha256'"),
        ({"bytes": "many"}, "key 'bytes'"),
        ({"url": "ftp://example.org/a.zip"}, "key 'url': string should match"),
        ({"url": "https:///a.zip"}, "key 'url': string should match"),
        ({"url": "https://user:word@example.org/a.zip"}, "key 'url': string should match"),
        ({"url": "https://example.org/%2e%2e%2fa"}, "key 'url': string should match"),
        ({"url": None}, "expected either 'url' or 'manual'"),
        ({"manual": "sign"}, "expected either 'url' or 'manual'"),
        ({"manual": "sign", "url": None}, "'bytes' needs 'url'"),
        ({"url": "https://example.org/CAPTION_datasets.zip"}, "another entry has the file name"),
        ({"folder": "../coco"}, "does not leave its folder"),
        ({"holds": []}, "key 'holds'"),
        ({"holds": ["a", "b/../../c"]}, "does not leave its folder"),
    ],
)
def test_a_wrong_entry_is_named(table: Table, change: dict[str, Any], message: str) -> None:
    with pytest.raises(GapinitError, match=re.escape(message)) as caught:
        read_downloads(table.write(images=change))
    assert str(table.path) in str(caught.value)


def test_all_wrong_entries_are_told_at_once(table: Table) -> None:
    table.path.write_text("a: text\n'b c': {}\n7: {}\nd: {url: 5}\n")
    with pytest.raises(GapinitError) as caught:
        read_downloads(table.path)
    for told in ("a: ", "name 'b c'", "name 7", "d: key 'folder' is missing"):
        assert f"{table.path}: {told}" in str(caught.value)


def test_an_unknown_name_is_told_with_the_nearest(table: Table) -> None:
    with pytest.raises(GapinitError, match="no entry 'image' .*did you mean 'images'"):
        find_download(table.write(), "image")
    with pytest.raises(GapinitError, match="it has: form, images, pope, splits"):
        find_download(table.path, "zzz")


def test_a_file_is_fetched_once(site: Site, table: Table, results: Path) -> None:
    output = results / "new" / IMAGES
    for content in (None, site.files[IMAGES], b"spoilt"):
        if content is not None:
            output.write_bytes(content)
        fetch(table.write(), "images", output)
        assert output.read_bytes() == site.files[IMAGES]
    assert len(site.asked) == 2 and beside(output) == [""]


def test_a_mirror_is_asked_by_file_name(site: Site, table: Table, results: Path) -> None:
    table.write(images={"url": f"http://gone.invalid/zips/{IMAGES}"})
    for mirror in (f"{site.url}/mirror/of", f"{site.url}/mirror/of/"):
        output = fetch(table.path, "images", results / mirror[-1] / "a.zip", mirror=mirror)
        assert output.read_bytes() == site.files[IMAGES]
    assert {asked["path"] for asked in site.asked} == {f"/mirror/of/{IMAGES}"}
    for wrong in ("ftp://host/x", "data", "http://host/x?key=1"):
        assert f"mirror '{wrong}'" in refused(table.path, "images", results / "b", mirror=wrong)


def test_a_broken_connection_is_resumed(site: Site, table: Table, results: Path) -> None:
    site.break_after = [PIECE + 10, PIECE + 10]
    output = fetch(table.write(), "images", results / "a.zip")
    assert output.read_bytes() == site.files[IMAGES]
    resumed = [f"bytes={PIECE}-", f"bytes={2 * PIECE}-"]
    assert [asked["range"] for asked in site.asked] == [None, *resumed]


def test_after_too_many_breaks_the_next_run_resumes(
    site: Site, table: Table, results: Path
) -> None:
    output = results / "a.zip"
    site.break_after = [PIECE, 0]
    text = refused(table.write(), "images", output, attempts=2)
    assert "given up after 2 attempts. 65.5 kB are kept" in text and f"{output}.partial" in text
    assert beside(output) == [".partial"]
    fetch(table.path, "images", output)
    assert site.asked[-1]["range"] == f"bytes={PIECE}-"
    assert output.read_bytes() == site.files[IMAGES] and beside(output) == [""]


def test_attempts_that_bring_much_are_not_counted(site: Site, table: Table, results: Path) -> None:
    site.files[IMAGES] = random.Random(0).randbytes(4 * ENOUGH)
    site.break_after = [ENOUGH + PIECE] * 3
    fetch(table.write(), "images", results / "a.zip", attempts=2)
    assert len(site.asked) == 4


def test_a_server_without_ranges_starts_again(site: Site, table: Table, results: Path) -> None:
    site.resumes, site.break_after = False, [2 * PIECE]
    output = fetch(table.write(), "images", results / "a.zip")
    assert output.read_bytes() == site.files[IMAGES]
    assert site.asked[1]["range"] and site.asked[1]["sent"] == len(site.files[IMAGES])


@pytest.mark.parametrize("pinned", [True, False])
def test_pieces_of_two_versions_are_never_joined(
    site: Site, table: Table, results: Path, pinned: bool
) -> None:
    table.write() if pinned else table.write(images={"sha256": None, "bytes": None})
    site.break_after = [PIECE, 0]
    refused(table.path, "images", results / "a.zip", attempts=2)
    site.files[IMAGES] = site.files[IMAGES].replace(jpeg(0, 480)[-99:], bytes(99))
    if pinned:  # the digest finds it
        assert "wrong SHA-256" in refused(table.path, "images", results / "a.zip")
        assert beside(results / "a.zip") == []
    else:  # all of it is fetched again
        output = fetch(table.path, "images", results / "a.zip")
        assert output.read_bytes() == site.files[IMAGES] and site.asked[-1]["range"] is None


@pytest.mark.parametrize("more", [b"", b"more than there is"])
def test_a_complete_partial_is_only_verified(
    site: Site, table: Table, results: Path, more: bytes
) -> None:
    (results / "a.zip.partial").write_bytes(site.files[IMAGES] + more)
    output = fetch(table.write(), "images", results / "a.zip")
    assert output.read_bytes() == site.files[IMAGES]
    sent = [asked["sent"] for asked in site.asked]
    assert sent == ([0, len(site.files[IMAGES])] if more else [0])


@pytest.mark.parametrize("status", [404, 403])
def test_a_refusal_is_an_error_at_once(
    site: Site, table: Table, results: Path, status: int
) -> None:
    site.statuses = [status]
    text = refused(table.write(), "images", results / "a.zip")
    assert f"{site.url}/{IMAGES}: the server answered {status}" in text
    assert len(site.asked) == 1


def test_a_busy_server_is_asked_again(
    site: Site, table: Table, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.statuses = [500, 429]
    fetch(table.write(), "images", results / "a.zip")
    assert "images: the server answered 500" in capsys.readouterr().err
    site.statuses = [503] * 3
    assert "given up after 3 attempts" in refused(table.path, "images", results / "b.zip")


def test_a_silent_or_missing_server_is_an_error(site: Site, table: Table, results: Path) -> None:
    site.break_after, site.stall = [0, 0], threading.Event()
    options = {"attempts": 2, "timeout_s": (2.0, 0.05)}
    text = refused(table.write(), "images", results / "a.zip", **options)
    site.stall.set()
    assert "the connection failed" in text and "given up after 2 attempts" in text
    table.write(images={"url": f"http://127.0.0.1:9/{IMAGES}"})
    assert "the connection failed" in refused(table.path, "images", results / "b.zip")


@pytest.mark.parametrize(
    ("headers", "pinned", "message"),
    [
        ({"Content-Length": "1000"}, True, "1000 bytes, expected"),
        ({"Content-Length": "9999999"}, True, "9999999 bytes, expected"),
        ({"Content-Length": "9999999"}, False, "given up after"),
        ({"Content-Encoding": "gzip"}, True, "encoded as 'gzip'"),
    ],
)
def test_a_wrong_header_is_an_error(
    site: Site, table: Table, results: Path, headers: dict[str, str], pinned: bool, message: str
) -> None:
    site.headers = headers
    table.write() if pinned else table.write(images={"bytes": None, "sha256": None})
    assert message in refused(table.path, "images", results / "a.zip")
    assert not (results / "a.zip").exists()


def test_more_than_expected_is_stopped(site: Site, table: Table, results: Path) -> None:
    table.write()
    site.files[IMAGES] *= 5
    site.headers = {"Content-Length": ""}
    assert "bytes, expected" in refused(table.path, "images", results / "a.zip")


def test_a_wrong_digest_leaves_nothing(site: Site, table: Table, results: Path) -> None:
    text = refused(table.write(images={"sha256": "ab" * 32}), "images", results / "a.zip")
    found = hashlib.sha256(site.files[IMAGES]).hexdigest()
    for told in ("ab" * 32, found, f"{site.url}/{IMAGES}", str(table.path)):
        assert told in text
    assert beside(results / "a.zip") == []


def test_a_digest_that_the_table_lacks_is_recorded_and_held(
    site: Site, table: Table, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = fetch(table.write(), "splits", results / "caption_datasets.zip")
    digest = hashlib.sha256(site.files[output.name]).hexdigest()
    record = results / f"{output.name}.sha256"
    assert record.read_text() == f"{digest}  {output.name}\n"
    assert f"below 'splits:' in {table.path}:\n  sha256: {digest}\n" in capsys.readouterr().err
    fetch(table.path, "splits", output)
    assert len(site.asked) == 1 and capsys.readouterr().err == ""
    output.unlink()  # as Snakemake does before it runs a job again
    site.files[output.name] = zipped({"dataset_coco.json": b"[]"})
    text = refused(table.path, "splits", output)
    assert "wrong SHA-256" in text and str(record) in text and digest in text
    assert beside(output) == [".sha256"]
    record.write_text("nonsense")
    assert f"{record}: holds no SHA-256" in refused(table.path, "splits", output)


@pytest.mark.parametrize("name", ["splits", "pope"])
def test_a_web_page_is_not_recorded(site: Site, table: Table, results: Path, name: str) -> None:
    file = find_download(table.write(), name).file_name
    for page in (b"\n<!DOCTYPE html><html>log in</html>", b"no zip")[: 1 + (name == "splits")]:
        site.files[file] = page
        assert f"expected {file}, found" in refused(table.path, name, results / file)
        assert beside(results / file) == []


def test_a_file_put_there_by_hand_is_recorded(site: Site, table: Table, results: Path) -> None:
    output = results / "mine.zip"
    mine = zipped({"mine": b""})
    output.write_bytes(mine)
    fetch(table.write(), "splits", output)
    assert output.read_bytes() == mine and site.asked == []
    assert (results / "mine.zip.sha256").exists()
    text = refused(table.path, "form", results / "images.zip")
    assert "sign the form" in text and "into DATA_FOLDER/flickr30k." in text


def test_a_full_disk_is_told_before(
    table: Table, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10, 0, 10))
    text = refused(table.write(), "images", results / "a.zip")
    assert f"{results}: 10 bytes are free, images needs" in text
    assert not (results / "a.zip.partial").exists()


def test_what_cannot_be_written_is_an_error(table: Table, results: Path) -> None:
    (results / "file").write_text("")
    (results / "folder").mkdir()
    for output in (results / "file" / "a.zip", results / "folder"):
        assert f"{output}: cannot be written" in refused(table.write(), "images", output)


def test_a_log_shows_size_and_rate(
    site: Site,
    table: Table,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    fetch(table.write(), "images", results / "a.zip")
    size = progress.show_bytes(len(site.files[IMAGES]))
    lines = [line for line in capsys.readouterr().err.splitlines() if "B/s" in line]
    assert re.fullmatch(rf"images: 65.5 kB of {size}, \S+ .?B/s, about \d+ s left", lines[0])
    assert lines[-1].startswith(f"images: {size} of")


def test_a_redirect_to_another_scheme_is_refused(site: Site, table: Table, results: Path) -> None:
    site.redirect = "file://127.0.0.1/x"
    text = refused(table.write(), "images", results / "a.zip")
    assert "cannot be fetched" in text and site.redirect in text


def test_two_processes_fetch_once(site: Site, table: Table, results: Path) -> None:
    path, output = table.write(), results / "a.zip"
    with FileLock(f"{output}.lock"):
        threads = [threading.Thread(target=fetch, args=(path, "images", output)) for _ in "ab"]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        assert site.asked == []
    for thread in threads:
        thread.join(20)
    assert len(site.asked) == 1 and output.read_bytes() == site.files[IMAGES]


def test_the_commands_fetch_and_unpack(site: Site, table: Table, results: Path) -> None:
    archive, data, stamp = results / IMAGES, results / "data", results / "images.json"

    def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        head = [sys.executable, "-m", "gapinit", "data", command, f"--downloads={table.write()}"]
        return subprocess.run([*head, *arguments], capture_output=True, text=True, check=False)

    done = run("retrieve", "--name=images", f"--output={archive}", f"--mirror={site.url}")
    assert done.returncode == 0, done.stderr
    place = [f"--archive={archive}", f"--root={data}", f"--output={stamp}"]
    assert run("unpack", "--name=images", *place).returncode == 0
    assert (data / "coco" / JPEG).is_file() and stamp.is_file()
    done = run("retrieve", "--name=form", f"--output={results / 'f'}")
    assert done.returncode == 1 and "sign the form" in done.stderr
    assert "Traceback" not in done.stderr
