"""Files of the real datasets: fetched from a server that misbehaves, unpacked from bad archives."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from PIL import Image

from gapinit import progress
from gapinit.data import retrieve as retrieve_module
from gapinit.data.downloads import find_download, read_downloads
from gapinit.data.retrieve import retrieve
from gapinit.data.unpack import unpack
from gapinit.errors import GapinitError

PIECE = retrieve_module.CHUNK
JPEG = "train2014/COCO_train2014_000000000009.jpg"
DiskUsage = namedtuple("DiskUsage", "total used free")


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def jpeg(seed: int = 0, size: int = 32) -> bytes:
    buffer = io.BytesIO()
    pixels = random.Random(seed).randbytes(size * size * 3)
    Image.frombytes("RGB", (size, size), pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


PHOTO, OTHER_PHOTO = jpeg(0, 480), jpeg(1, 480)  # of several pieces each


def published() -> dict[str, bytes]:
    """Make small files in the formats of the real ones."""
    karpathy = {"dataset": "coco", "images": [{"filename": "COCO_train2014_000000000009.jpg"}]}
    question = {"question_id": 1, "image": "COCO_val2014_000000000042.jpg", "label": "yes"}
    questions = {"questions": [{"question_id": 9000, "image_id": 9, "question": "Is it red?"}]}
    return {
        "train2014.zip": zipped(
            {JPEG: PHOTO, "__MACOSX/._x": b"x", "train2014/": b""}, zipfile.ZIP_STORED
        ),
        "caption_datasets.zip": zipped(
            {
                "dataset_coco.json": json.dumps(karpathy).encode(),
                "dataset_flickr30k.json": json.dumps({**karpathy, "dataset": "f"}).encode(),
            }
        ),
        "coco_pope_random.json": "".join(f"{json.dumps(question)}\n" for _ in range(5)).encode(),
        "v2_Questions_Train_mscoco.zip": zipped(
            {"v2_OpenEnded_mscoco_train2014_questions.json": json.dumps(questions).encode()}
        ),
    }


class Site:
    """A file server on 127.0.0.1 that can be told to misbehave, and what it was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[dict[str, Any]] = []
        self.break_after: list[int] = []  # bytes of the body, for one request after another
        self.statuses: list[int] = []  # instead of an answer, for one request after another
        self.resumes = True
        self.marks = True
        self.headers: dict[str, str] = {}  # sent in place of the right ones
        self.stall: threading.Event | None = None
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def etag(self, name: str) -> str:
        return f'"{hashlib.md5(self.files[name]).hexdigest()}"'

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.rpartition("/")[2]
        asked = {"path": handler.path, "range": handler.headers["Range"], "sent": 0}
        self.asked.append(asked)
        if self.statuses or name not in self.files:
            handler.send_error(self.statuses.pop(0) if self.statuses else 404)
            return
        content = self.files[name]
        start = self.start(handler, name)
        headers = {"ETag": self.etag(name)} if self.marks else {}
        if start is None:
            handler.send_response(200)
            start = 0
        elif start >= len(content):
            handler.send_response(416)
            headers["Content-Range"] = f"bytes */{len(content)}"
            content = b""
        else:
            handler.send_response(206)
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        headers["Content-Length"] = str(len(body))
        for key, value in {**headers, **self.headers}.items():
            handler.send_header(key, value)
        handler.end_headers()
        stop = self.break_after.pop(0) if self.break_after else len(body)
        asked["sent"] = min(stop, len(body))
        handler.wfile.write(body[:stop])
        if self.stall is not None and stop < len(body):
            handler.wfile.flush()
            self.stall.wait(10)

    def start(self, handler: BaseHTTPRequestHandler, name: str) -> int | None:
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
        condition = handler.headers["If-Range"]
        if not self.resumes or not wanted or condition not in (None, self.etag(name)):
            return None
        return int(wanted[1])


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site = Site(published())
    thread = threading.Thread(target=site.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def write_table(tmp_path: Path, site: Site) -> Callable[..., Path]:
    """Return a function that writes a table of the site's files, changed as it is told."""

    def write(**changes: Any) -> Path:
        def entry(file: str, folder: str, holds: list[str], **more: Any) -> dict[str, Any]:
            digest = hashlib.sha256(site.files[file]).hexdigest()
            known = {"bytes": len(site.files[file]), "sha256": digest}
            return {"url": f"{site.url}/{file}", "folder": folder, "holds": holds, **known, **more}

        questions = "v2_OpenEnded_mscoco_train2014_questions.json"
        unpinned = {"bytes": None, "sha256": None}
        pope = "coco_pope_random.json"
        content = {
            "images": entry("train2014.zip", "coco", ["train2014"]),
            "splits": entry("caption_datasets.zip", "karpathy", ["dataset_coco.json"], **unpinned),
            "pope": entry(pope, "coco/pope", [pope], unpack=False, **unpinned),
            "vqa": entry("v2_Questions_Train_mscoco.zip", "coco/vqav2", [questions]),
            "form": {
                "manual": "sign the form, put flickr30k-images/ into {folder}.",
                "folder": "flickr30k",
                "holds": ["flickr30k-images"],
            },
        }
        for name, change in changes.items():
            content[name] |= change
        path = tmp_path / "downloads.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def fetch(table: Path, name: str, output: Path, **options: Any) -> Path:
    quick = {"progress": False, "first_wait_s": 0.001, "attempts": 3, "timeout_s": (2.0, 2.0)}
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


# --- the table ---------------------------------------------------------------------------------


def test_the_table_of_the_repository_is_right(repository: Path) -> None:
    downloads = read_downloads(repository / "config" / "downloads.yaml")
    train = downloads["coco-train2014"]
    assert (train.file_name, train.bytes, train.unpack) == ("train2014.zip", 13510573713, True)
    assert downloads["pope-random"].unpack is False
    assert {"coco-val2014", "karpathy-splits", "vqav2-val-annotations"} <= downloads.keys()
    by_hand = [name for name, download in downloads.items() if download.manual is not None]
    assert by_hand == ["flickr30k-images"]
    okvqa = [name for name in downloads if name.startswith("okvqa-")]
    assert len(okvqa) == 4 and all(downloads[name].sha256 is None for name in okvqa)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha": "0" * 64}, "unknown key 'sha' (did you mean 'sha256'?)"),
        ({"sha256": "12ab"}, "key 'sha256'"),
        ({"bytes": "many"}, "key 'bytes'"),
        ({"bytes": True}, "key 'bytes': input should not be a boolean"),
        ({"url": "ftp://example.org/a.zip"}, "expected http:// or https://"),
        ({"url": "https:///a.zip"}, "expected http:// or https://"),
        ({"url": "https://example.org/"}, "expected http:// or https://"),
        ({"url": "https://user:word@example.org/a.zip"}, "expected http:// or https://"),
        ({"url": "https://example.org/%2e%2e%2fa"}, "add 'file'"),
        ({"url": None}, "expected either 'url' or 'manual'"),
        ({"manual": "sign"}, "expected either 'url' or 'manual'"),
        ({"manual": "sign", "url": None}, "'bytes' needs 'url'"),
        ({"file": "../a.zip"}, "expected a file name of letters"),
        ({"file": "CAPTION_datasets.zip"}, "is also that of images"),
        ({"folder": "../coco"}, "does not leave its folder"),
        ({"folder": "/coco"}, "does not leave its folder"),
        ({"holds": []}, "key 'holds'"),
        ({"holds": ["a", "b/../../c"]}, "does not leave its folder"),
        ({"unpack": "perhaps"}, "key 'unpack'"),
    ],
)
def test_a_wrong_entry_is_named(
    write_table: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    table = write_table(images=change)
    with pytest.raises(GapinitError) as caught:
        read_downloads(table)
    assert message in str(caught.value) and str(table) in str(caught.value)


def test_all_wrong_entries_are_told_at_once(tmp_path: Path) -> None:
    table = tmp_path / "downloads.yaml"
    table.write_text("a: text\n'b c': {}\n7: {}\nd: {url: 5}\n")
    with pytest.raises(GapinitError) as caught:
        read_downloads(table)
    text = str(caught.value)
    assert f"{table}: a: " in text and "name 'b c'" in text and "name 7" in text
    assert f"{table}: d: key 'folder' is missing" in text


def test_an_unknown_name_is_told_with_the_nearest(write_table: Callable[..., Path]) -> None:
    table = write_table()
    with pytest.raises(GapinitError, match="no entry 'image' .*did you mean 'images'"):
        find_download(table, "image")
    with pytest.raises(GapinitError, match="it has: form, images, pope, splits, vqa"):
        find_download(table, "zzz")


def test_the_table_is_read_without_anything_heavy() -> None:
    code = (
        "import sys, gapinit.data.downloads\n"
        "heavy = {'torch', 'transformers', 'requests', 'filelock', 'PIL', 'h5py', 'numpy'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- fetching ----------------------------------------------------------------------------------


def test_a_file_is_fetched_and_then_is_there(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    table, output = write_table(), results / "new" / "train2014.zip"
    fetch(table, "images", output)
    assert output.read_bytes() == site.files["train2014.zip"]
    assert beside(output) == [""]
    fetch(table, "images", output)
    assert len(site.asked) == 1
    output.write_bytes(b"spoilt")
    fetch(table, "images", output)
    assert output.read_bytes() == site.files["train2014.zip"]


def test_a_mirror_is_asked_by_file_name(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    table = write_table(images={"url": "http://gone.invalid/zips/train2014.zip"})
    for mirror in (f"{site.url}/mirror/of", f"{site.url}/mirror/of/"):
        output = fetch(table, "images", results / mirror[-1] / "a.zip", mirror=mirror)
        assert output.read_bytes() == site.files["train2014.zip"]
    assert {asked["path"] for asked in site.asked} == {"/mirror/of/train2014.zip"}
    for wrong in ("ftp://host/x", "file:///data", "data", "http://host/x?key=1"):
        assert f"mirror '{wrong}'" in refused(table, "images", results / "b", mirror=wrong)


def test_a_broken_connection_is_resumed(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    size = len(site.files["train2014.zip"])
    assert size > 3 * PIECE
    site.break_after = [PIECE + 10, PIECE + 10]
    output = fetch(write_table(), "images", results / "a.zip")
    assert output.read_bytes() == site.files["train2014.zip"]
    assert [asked["range"] for asked in site.asked] == [
        None,
        f"bytes={PIECE}-",
        f"bytes={2 * PIECE}-",
    ]
    assert site.asked[2]["sent"] == size - 2 * PIECE


def test_after_too_many_breaks_the_next_run_resumes(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    table, output = write_table(), results / "a.zip"
    site.break_after = [PIECE, 0]
    text = refused(table, "images", output, attempts=2)
    assert "the connection broke in the middle" in text and "running again resumes" in text
    assert "65.5 kB are kept" in text and f"{output}.partial" in text
    assert beside(output) == [".partial", ".partial.json"]
    fetch(table, "images", output)
    assert site.asked[-1]["range"] == f"bytes={PIECE}-"
    assert output.read_bytes() == site.files["train2014.zip"] and beside(output) == [""]


def test_attempts_that_bring_much_are_not_counted(
    site: Site, write_table: Callable[..., Path], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieve_module, "ENOUGH", PIECE)
    site.break_after = [PIECE + 1] * 3
    fetch(write_table(), "images", results / "a.zip", attempts=2)
    assert len(site.asked) == 4


def test_a_killed_process_leaves_what_the_next_resumes(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    table, output = write_table(), results / "a.zip"
    site.break_after, site.stall = [2 * PIECE + 1], threading.Event()
    arguments = [f"--downloads={table}", "--name=images", f"--output={output}"]
    process = subprocess.Popen([sys.executable, "-m", "gapinit", "data", "retrieve", *arguments])
    partial = results / "a.zip.partial"
    deadline = time.monotonic() + 30
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    site.stall.set()
    kept = partial.stat().st_size
    assert not output.exists() and 0 < kept <= 2 * PIECE
    fetch(table, "images", output)
    assert site.asked[-1]["range"] == f"bytes={kept}-"
    assert output.read_bytes() == site.files["train2014.zip"]


def test_a_server_without_ranges_starts_again(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    site.resumes, site.break_after = False, [2 * PIECE]
    output = fetch(write_table(), "images", results / "a.zip")
    assert output.read_bytes() == site.files["train2014.zip"]
    assert site.asked[1]["range"] and site.asked[1]["sent"] == len(site.files["train2014.zip"])


def test_pieces_of_two_versions_are_never_joined(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    table = write_table(images={"sha256": None, "bytes": None})
    output = results / "a.zip"
    site.break_after = [PIECE, 0]
    refused(table, "images", output, attempts=2)
    site.files["train2014.zip"] = zipped({JPEG: OTHER_PHOTO})
    fetch(table, "images", output)
    assert site.asked[-1]["range"] == f"bytes={PIECE}-"
    assert output.read_bytes() == site.files["train2014.zip"]


@pytest.mark.parametrize("pinned", [True, False])
def test_without_a_mark_only_a_pinned_file_is_resumed(
    site: Site, write_table: Callable[..., Path], results: Path, pinned: bool
) -> None:
    table = write_table() if pinned else write_table(images={"sha256": None})
    site.marks, site.break_after = False, [PIECE]
    output = fetch(table, "images", results / "a.zip")
    assert site.asked[1]["range"] == (f"bytes={PIECE}-" if pinned else None)
    assert output.read_bytes() == site.files["train2014.zip"]


def test_a_range_of_another_version_is_thrown_away(
    site: Site, write_table: Callable[..., Path], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that ignores If-Range still tells its ETag."""
    table, output = write_table(images={"sha256": None, "bytes": None}), results / "a.zip"
    site.break_after = [PIECE, 0]
    refused(table, "images", output, attempts=2)
    site.files["train2014.zip"] = zipped({JPEG: OTHER_PHOTO})
    monkeypatch.setattr(
        site, "start", lambda handler, name: PIECE if handler.headers["Range"] else None
    )
    fetch(table, "images", output)
    assert [asked["range"] for asked in site.asked[-2:]] == [f"bytes={PIECE}-", None]
    assert output.read_bytes() == site.files["train2014.zip"]


def test_a_complete_partial_is_only_verified(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    content = site.files["train2014.zip"]
    (results / "a.zip.partial").write_bytes(content)
    output = fetch(write_table(), "images", results / "a.zip")
    assert output.read_bytes() == content
    assert [asked["sent"] for asked in site.asked] == [0]  # 416
    (results / "b.zip.partial").write_bytes(content + b"more than there is")
    output = fetch(write_table(), "images", results / "b.zip")
    assert output.read_bytes() == content


@pytest.mark.parametrize("state", ["", "[]", '{"url": 7}', '{"url": "elsewhere", "ETag": "x"}'])
def test_a_damaged_state_does_no_harm(
    site: Site, write_table: Callable[..., Path], results: Path, state: str
) -> None:
    (results / "a.zip.partial").write_bytes(b"of another file")
    (results / "a.zip.partial.json").write_text(state)
    output = fetch(write_table(images={"sha256": None}), "images", results / "a.zip")
    assert output.read_bytes() == site.files["train2014.zip"]
    assert site.asked[0]["range"] is None


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_refusal_is_an_error_at_once(
    site: Site, write_table: Callable[..., Path], results: Path, status: int
) -> None:
    site.statuses = [status]
    text = refused(write_table(), "images", results / "a.zip")
    assert f"{site.url}/train2014.zip: the server answered {status}" in text
    assert len(site.asked) == 1


def test_a_busy_server_is_asked_again(
    site: Site, write_table: Callable[..., Path], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.statuses = [500, 429]
    fetch(write_table(), "images", results / "a.zip")
    assert "images: the server answered 500" in capsys.readouterr().err
    site.statuses = [503] * 3
    assert "given up after 3 attempts" in refused(write_table(), "images", results / "b.zip")


def test_a_silent_server_is_an_error(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    site.break_after, site.stall = [0, 0], threading.Event()
    text = refused(write_table(), "images", results / "a.zip", attempts=2, timeout_s=(2.0, 0.05))
    site.stall.set()
    assert "given up after 2 attempts" in text


def test_no_server_is_an_error(write_table: Callable[..., Path], results: Path) -> None:
    table = write_table(images={"url": "http://127.0.0.1:9/train2014.zip"})
    assert "no connection" in refused(table, "images", results / "a.zip")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Content-Length": "1000"}, "1000 bytes, expected"),
        ({"Content-Length": "9999999"}, "9999999 bytes, expected"),
        ({"Content-Encoding": "gzip"}, "encoded as 'gzip'"),
    ],
)
def test_a_wrong_header_is_an_error(
    site: Site,
    write_table: Callable[..., Path],
    results: Path,
    headers: dict[str, str],
    message: str,
) -> None:
    site.headers = headers
    assert message in refused(write_table(), "images", results / "a.zip")
    assert not (results / "a.zip").exists()


def test_less_than_announced_is_an_error(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    size = len(site.files["train2014.zip"])
    site.headers, site.resumes = {"Content-Length": str(size + 5)}, False
    table = write_table(images={"bytes": None, "sha256": None})
    assert "given up after" in refused(table, "images", results / "a.zip")


def test_more_than_expected_is_stopped(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    table = write_table()
    site.files["train2014.zip"] *= 5
    site.headers = {"Content-Length": ""}
    assert "bytes, expected" in refused(table, "images", results / "a.zip")


def test_a_wrong_digest_leaves_nothing(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    table, right = write_table(images={"sha256": "ab" * 32}), site.files["train2014.zip"]
    text = refused(table, "images", results / "a.zip")
    assert "ab" * 32 in text and hashlib.sha256(right).hexdigest() in text
    assert f"{site.url}/train2014.zip" in text and str(table) in text
    assert beside(results / "a.zip") == []


def test_a_digest_that_the_table_lacks_is_recorded_and_held(
    site: Site, write_table: Callable[..., Path], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, output = write_table(), results / "caption_datasets.zip"
    fetch(table, "splits", output)
    digest = hashlib.sha256(site.files[output.name]).hexdigest()
    record = results / f"{output.name}.sha256"
    assert record.read_text() == f"{digest}  {output.name}\n"
    note = capsys.readouterr().err
    assert f"below 'splits:' in {table}:\n  sha256: {digest}\n" in note
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", record.name], cwd=results, check=True)

    fetch(table, "splits", output)
    assert len(site.asked) == 1 and capsys.readouterr().err == ""
    output.unlink()  # as Snakemake does before it runs a job again
    site.files[output.name] = zipped({"dataset_coco.json": b"[]"})
    text = refused(table, "splits", output)
    assert "wrong SHA-256" in text and str(record) in text and digest in text
    assert beside(output) == [".sha256"]
    record.write_text("nonsense")
    assert f"{record}: holds no SHA-256" in refused(table, "splits", output)


@pytest.mark.parametrize(("name", "file"), [("splits", "caption_datasets.zip"), ("pope", "")])
def test_a_web_page_is_not_recorded(
    site: Site, write_table: Callable[..., Path], results: Path, name: str, file: str
) -> None:
    table, file = write_table(), file or "coco_pope_random.json"
    pages = [b"\n<!DOCTYPE html><html>log in</html>"] + [b"no zip"] * file.endswith(".zip")
    for page in pages:
        site.files[file] = page
        assert f"is not {file} but" in refused(table, name, results / file)
        assert beside(results / file) == []


def test_a_file_put_there_by_hand_is_recorded(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    output = results / "mine.zip"
    output.write_bytes(b"mine")
    fetch(write_table(), "splits", output)
    assert output.read_bytes() == b"mine" and site.asked == []
    assert (results / "mine.zip.sha256").exists()


def test_a_full_disk_is_told_before(
    site: Site, write_table: Callable[..., Path], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10, 0, 10))
    text = refused(write_table(), "images", results / "a.zip")
    assert "10 bytes are free, images needs" in text
    assert not (results / "a.zip.partial").exists()


def test_what_cannot_be_written_is_an_error(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    (results / "file").write_text("")
    assert "cannot be written" in refused(write_table(), "images", results / "file" / "a.zip")
    (results / "folder").mkdir()
    assert "is a folder" in refused(write_table(), "images", results / "folder")


def test_a_log_shows_size_and_rate(
    site: Site,
    write_table: Callable[..., Path],
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    site.break_after = [PIECE]
    fetch(write_table(), "images", results / "a.zip", progress=True)
    size = progress.show_bytes(len(site.files["train2014.zip"]))
    lines = [line for line in capsys.readouterr().err.splitlines() if "B/s" in line]
    assert re.fullmatch(rf"images: 65.5 kB of {size}, \S+ .?B/s, about \d+ s left", lines[0])
    assert lines[1].startswith("images: 131.1 kB") and lines[-1].startswith(f"images: {size} of")


@pytest.mark.parametrize("scheme", ["file", "ftp"])
def test_a_redirect_to_another_scheme_is_refused(
    site: Site,
    write_table: Callable[..., Path],
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
) -> None:
    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"{scheme}://127.0.0.1/x")
        handler.end_headers()

    monkeypatch.setattr(site, "answer", redirect)
    text = refused(write_table(), "images", results / "a.zip")
    assert "cannot be fetched" in text and f"{scheme}://127.0.0.1/x" in text


def test_two_processes_fetch_once(
    site: Site, write_table: Callable[..., Path], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, output = write_table(), results / "a.zip"
    with FileLock(f"{output}.lock"):
        threads = [threading.Thread(target=fetch, args=(table, "images", output)) for _ in "ab"]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        assert site.asked == []
    for thread in threads:
        thread.join(20)
    assert len(site.asked) == 1 and output.read_bytes() == site.files["train2014.zip"]
    assert "waiting for the process that writes it" in capsys.readouterr().err


def test_what_is_done_by_hand_is_told(write_table: Callable[..., Path], results: Path) -> None:
    text = refused(write_table(), "form", results / "images.zip")
    assert "sign the form" in text and "into DATA_FOLDER/flickr30k." in text
    (results / "images.zip").write_bytes(b"")
    fetch(write_table(), "form", results / "images.zip")


# --- unpacking ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sync", lambda: None)


@pytest.fixture
def place(write_table: Callable[..., Path], results: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that unpacks an archive of these bytes as 'images'."""

    def put(content: bytes, name: str = "images", **changes: Any) -> dict[str, Any]:
        archive = results / "archive.zip"
        archive.write_bytes(content)
        table = write_table(**{name: {"sha256": None, "bytes": None, **changes}})
        stamp = results / "stamps" / f"{name}.json"
        unpack(name, table, results / "data", stamp, archive=archive, progress=False)
        return json.loads(stamp.read_text())

    return put


def unpack_error(place: Callable[..., dict[str, Any]], content: bytes, **options: Any) -> str:
    with pytest.raises(GapinitError) as caught:
        place(content, **options)
    return str(caught.value)


def test_an_archive_is_unpacked(
    site: Site, place: Callable[..., dict[str, Any]], results: Path
) -> None:
    stamp = place(site.files["train2014.zip"])
    content = PHOTO
    assert (results / "data" / "coco" / JPEG).read_bytes() == content
    assert not (results / "data" / "coco" / "__MACOSX").exists()
    digest = hashlib.sha256(site.files["train2014.zip"]).hexdigest()
    assert stamp == {
        "name": "images",
        "folder": "coco",
        "archive": "archive.zip",
        "sha256": digest,
        "files": 1,
        "bytes": len(content),
    }
    for name in ("caption_datasets.zip", "v2_Questions_Train_mscoco.zip"):
        place(site.files[name], {"c": "splits", "v": "vqa"}[name[0]])
    assert (results / "data" / "karpathy" / "dataset_flickr30k.json").is_file()
    assert len(list((results / "data" / "coco" / "vqav2").iterdir())) == 1


def test_a_plain_file_is_linked_or_copied(
    site: Site,
    place: Callable[..., dict[str, Any]],
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
    inode = placed.stat().st_ino
    place(content, "pope")
    assert placed.stat().st_ino == inode
    placed.write_bytes(b"spoilt")
    place(content, "pope")
    assert placed.read_bytes() == content


@pytest.mark.parametrize(
    "name",
    ["../out.jpg", "train2014/../../out.jpg", "/tmp/out.jpg", "C:\\out.jpg", "a\\..\\b", "."],
)
def test_no_member_leaves_the_folder(
    place: Callable[..., dict[str, Any]], results: Path, name: str
) -> None:
    text = unpack_error(place, zipped({JPEG: b"x", name: b"out"}))
    assert f"member '{name}'" in text and "nothing unpacked" in text
    assert list((results / "data").rglob("*.jpg")) == []
    assert list(results.rglob("out.jpg")) == []


def test_links_are_refused(place: Callable[..., dict[str, Any]], results: Path) -> None:
    for kind in (stat.S_IFLNK, stat.S_IFIFO):
        link = zipfile.ZipInfo("train2014/link")
        link.external_attr = (kind | 0o777) << 16
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(JPEG, b"x")
            archive.writestr(link, "/etc/passwd")
        text = unpack_error(place, buffer.getvalue())
        assert "member 'train2014/link' is a link or another special file" in text
    assert not (results / "data" / "coco" / "train2014").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_stands_twice_is_refused(place: Callable[..., dict[str, Any]]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(JPEG, b"x")
        archive.writestr(f"./{JPEG}", b"y")
    assert "stands twice" in unpack_error(place, buffer.getvalue())


def test_an_encrypted_member_is_refused(place: Callable[..., dict[str, Any]]) -> None:
    content = bytearray(zipped({JPEG: b"x"}))
    content[content.index(b"PK\1\2") + 8] |= 1
    assert "is encrypted" in unpack_error(place, bytes(content))


def test_a_bomb_is_refused_by_its_declared_size(
    place: Callable[..., dict[str, Any]], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**6, 0, 10**6))
    text = unpack_error(place, zipped({JPEG: bytes(2 * 10**6)}))
    assert "1.0 MB are free" in text and "needs 2.0 MB" in text
    assert not (results / "data" / "coco" / "train2014").exists()


def test_a_bomb_that_declares_too_little_is_stopped(
    place: Callable[..., dict[str, Any]], results: Path
) -> None:
    content = bytearray(zipped({JPEG: bytes(10**6)}))
    at = content.index(b"PK\1\2") + 24
    assert int.from_bytes(content[at : at + 4], "little") == 10**6
    for declared in (1000, 2 * 10**6):
        content[at : at + 4] = declared.to_bytes(4, "little")
        assert "not a whole zip archive" in unpack_error(place, bytes(content))
        assert list((results / "data" / "coco").rglob("*.*")) == []


def test_a_damaged_archive_is_named(
    place: Callable[..., dict[str, Any]], results: Path, site: Site
) -> None:
    whole = site.files["train2014.zip"]
    flipped = bytearray(whole)
    flipped[1000] ^= 255
    for content in (b"", b"<html>not found</html>", whole[:-30], whole[:1000], bytes(flipped)):
        text = unpack_error(place, content)
        assert f"{results / 'archive.zip'}: not a whole zip archive" in text
        assert list((results / "data" / "coco").rglob("*.jpg*")) == []


def test_no_damage_is_a_traceback(write_table: Callable[..., Path], results: Path) -> None:
    table, archive = write_table(images={"sha256": None, "bytes": None}), results / "archive.zip"
    whole = zipped({"train2014/a.jpg": b"some bytes, some bytes, some bytes", "train2014/b": b"b"})
    generator = random.Random(0)
    for at in range(0, len(whole), 3):
        content = bytearray(whole)
        content[at] ^= generator.randrange(1, 256)
        archive.write_bytes(content)
        shutil.rmtree(results / "data", ignore_errors=True)
        try:
            unpack("images", table, results / "data", results / "s.json", archive, progress=False)
        except GapinitError as error:
            assert str(results) in str(error)
        assert {path.name for path in results.iterdir()} <= {
            *("data", "archive.zip", "s.json", ".s.json.sha256", "s.json.lock")
        }


def test_an_interrupted_unpacking_goes_on(
    place: Callable[..., dict[str, Any]], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"train2014/COCO_train2014_{number:012d}.jpg" for number in range(5)]
    content = zipped({name: jpeg(number) for number, name in enumerate(names)})
    folder = results / "data" / "coco"
    replace = os.replace
    done: list[Any] = []

    def interrupted(*paths: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(paths)
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            place(content)
    assert len(list((folder / "train2014").iterdir())) == 2
    assert not (results / "stamps" / "images.json").exists()

    before = {name: (folder / name).stat() for name in names[:2]}
    (folder / names[1]).write_bytes(bytes(before[names[1]].st_size))  # same size, other bytes
    (folder / "train2014" / f".{Path(names[2]).name}.partial").write_bytes(b"of a killed process")
    assert place(content)["files"] == 5
    assert {name: (folder / name).read_bytes() for name in names} == {
        name: jpeg(number) for number, name in enumerate(names)
    }
    assert len(list((folder / "train2014").iterdir())) == 5
    assert (folder / names[0]).stat().st_ino == before[names[0]].st_ino


def test_what_the_table_promises_must_be_there(
    place: Callable[..., dict[str, Any]], results: Path
) -> None:
    text = unpack_error(place, zipped({"val2014/COCO_val2014_000000000042.jpg": b"x"}))
    assert f"{results / 'data' / 'coco' / 'train2014'} did not come with it" in text
    assert not (results / "stamps" / "images.json").exists()


def test_a_wrong_or_missing_archive_is_told(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    table, stamp = write_table(), results / "stamp.json"
    with pytest.raises(GapinitError, match="images: no archive given"):
        unpack("images", table, results / "data", stamp, progress=False)
    with pytest.raises(GapinitError, match="no such file. `gapinit data retrieve --name images`"):
        unpack("images", table, results / "data", stamp, results / "no.zip", progress=False)
    (results / "other.zip").write_bytes(site.files["caption_datasets.zip"])
    with pytest.raises(GapinitError, match="wrong SHA-256, expected"):
        unpack("images", table, results / "data", stamp, results / "other.zip", progress=False)
    assert not stamp.exists()


def test_what_is_done_by_hand_is_checked(write_table: Callable[..., Path], results: Path) -> None:
    table, stamp, data = write_table(), results / "stamp.json", results / "data"

    def check(**options: Any) -> str:
        with pytest.raises(GapinitError) as caught:
            unpack("form", table, data, stamp, **options)
        return str(caught.value)

    assert f"put flickr30k-images/ into {data / 'flickr30k'}." in check()
    images = data / "flickr30k" / "flickr30k-images"
    images.mkdir(parents=True)
    assert "no file in flickr30k-images" in check()
    assert "takes no archive" in check(archive=results / "a.zip")
    (images / "1000092795.jpg").write_bytes(jpeg())
    unpack("form", table, data, stamp)
    assert json.loads(stamp.read_text()) == {
        "name": "form",
        "folder": "flickr30k",
        "sha256": None,
        "files": 1,
        "bytes": len(jpeg()),
    }


def test_a_file_in_the_way_is_an_error(
    place: Callable[..., dict[str, Any]], results: Path, site: Site
) -> None:
    (results / "data" / "coco").mkdir(parents=True)
    (results / "data" / "coco" / "train2014").write_text("")
    text = unpack_error(place, site.files["train2014.zip"])
    assert "train2014" in text and str(results / "archive.zip") in text


# --- the commands ------------------------------------------------------------------------------


def gapinit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gapinit", "data", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_commands_fetch_and_unpack(
    site: Site, write_table: Callable[..., Path], results: Path
) -> None:
    table = f"--downloads={write_table()}"
    archive, stamp = results / "train2014.zip", results / "images.json"
    done = gapinit(
        "retrieve", table, "--name=images", f"--output={archive}", f"--mirror={site.url}"
    )
    assert done.returncode == 0, done.stderr
    place = [f"--archive={archive}", f"--root={results / 'data'}", f"--output={stamp}"]
    done = gapinit("unpack", table, "--name=images", *place)
    assert done.returncode == 0, done.stderr
    assert (results / "data" / "coco" / JPEG).is_file()
    assert json.loads(stamp.read_text())["files"] == 1
    done = gapinit("retrieve", table, "--name=form", f"--output={results / 'f'}")
    assert done.returncode == 1 and "sign the form" in done.stderr
    assert "Traceback" not in done.stderr
