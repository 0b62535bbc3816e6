"""Fetch one file of the table: resumable, and under its final name only once it is verified.

Beside the output lie `.partial` with what has come so far, `.partial.json` with what identifies
the file on the server, `.sha256` with the digest of a file that the table has none for, `.lock`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import requests
from filelock import FileLock, Timeout

from gapinit.artifacts.artifacts import read_json, sha256
from gapinit.data.downloads import Download, find_download, instructions
from gapinit.errors import GapinitError
from gapinit.progress import show_bytes, track_bytes

ATTEMPTS = 6
FIRST_WAIT_S = 1.0  # doubled after each attempt
TIMEOUT_S = (15.0, 60.0)  # for the connection; between two pieces
CHUNK = 1 << 16  # what a broken connection loses at most
ENOUGH = 1 << 20  # an attempt that brings this much starts the count of attempts again
MARKS = ("ETag", "Last-Modified")  # headers that tell one version of a file from another
BUSY = (408, 429)  # as passing as the server errors from 500 on


@dataclass(frozen=True)
class _Job:
    """One file to fetch, and the files beside it."""

    name: str
    table: Path
    download: Download
    url: str
    output: Path

    def beside(self, suffix: str) -> Path:
        """Return the file of this suffix beside the output."""
        return self.output.with_name(self.output.name + suffix)

    @property
    def partial(self) -> Path:
        """What has come so far."""
        return self.beside(".partial")

    @property
    def here(self) -> int:
        """The number of bytes that have come so far."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    def discard(self) -> None:
        """Forget what has come so far."""
        self.partial.unlink(missing_ok=True)
        self.beside(".partial.json").unlink(missing_ok=True)


class _Interrupted(Exception):
    """The attempt failed in a way that another one may not."""


def retrieve(
    name: str,
    table: Path,
    output: Path,
    mirror: str | None = None,
    progress: bool = True,
    *,
    attempts: int = ATTEMPTS,
    first_wait_s: float = FIRST_WAIT_S,
    timeout_s: tuple[float, float] = TIMEOUT_S,
) -> None:
    """Fetch the file of entry `name` of `table` to `output`, from its URL or from a mirror.

    A download that was stopped goes on where it ended. Nothing is fetched if `output` is there
    with the right SHA-256. An entry that is done by hand is an error that says what to do, unless
    the user has put `output` in place.
    """
    table, output = Path(table), Path(output)
    download = find_download(table, name)
    if download.manual is not None:
        if not output.exists():
            raise GapinitError(instructions(name, download, "DATA_FOLDER"))
        return
    job = _Job(name, table, download, _address(download, mirror), output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with locked(output):
            if _is_there(job):
                return
            _fetch(job, progress, attempts, first_wait_s, timeout_s)
            found = _verify(job)
            os.replace(job.partial, output)
            job.discard()
            _record(job, found)
    except OSError as error:
        kept = f" What has come is kept: {job.partial}. Running again resumes." if job.here else ""
        raise GapinitError(f"{output}: cannot be written ({error.strerror}).{kept}") from None


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold `<output>.lock`, so that two processes do not write the same file at a time."""
    lock = FileLock(f"{output}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{output}: waiting for the process that writes it", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _address(download: Download, mirror: str | None) -> str:
    if mirror is None:
        return str(download.url)
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", mirror):
        raise GapinitError(
            f"mirror '{mirror}': expected the address of a folder, http://HOST/... or https://..."
        )
    return f"{mirror.rstrip('/')}/{download.file_name}"


def _expected(job: _Job) -> tuple[str | None, str]:
    """Return the SHA-256 that the file must have, if one is known, and who says so."""
    if job.download.sha256 is not None:
        return job.download.sha256, f"{job.table}: {job.name}"
    record = job.beside(".sha256")
    if not record.exists():
        return None, ""
    words = record.read_text(encoding="utf-8", errors="replace").split()
    if not words or not re.fullmatch(r"[0-9a-f]{64}", words[0]):
        raise GapinitError(f"{record}: holds no SHA-256. Delete it and run again.")
    return words[0], f"the first download, {record}"


def _is_there(job: _Job) -> bool:
    """Tell whether the output is in place and right; another file of that name is replaced."""
    if job.output.is_dir():
        raise GapinitError(f"{job.output}: is a folder; expected the path of a file")
    if not job.output.exists():
        return False
    expected, origin = _expected(job)
    size, found = job.output.stat().st_size, sha256(job.output)
    if job.download.bytes not in (None, size) or expected not in (None, found):
        print(f"{job.output}: not the file of {origin or job.table}; fetching it", file=sys.stderr)
        return False
    if expected is None:
        _record(job, found)
    return True


def _record(job: _Job, found: str) -> None:
    """Keep the digest of a file that the table has none for, and say how to pin it."""
    record = job.beside(".sha256")
    if job.download.sha256 is not None or record.exists():
        return
    record.write_text(f"{found}  {job.output.name}\n", encoding="utf-8")
    print(
        f"{job.name}: {job.table} has no SHA-256 for it; that of what came is kept in {record}. "
        f"To pin it, set this below '{job.name}:' in {job.table}:\n  sha256: {found}",
        file=sys.stderr,
    )


def _verify(job: _Job) -> str:
    """Return the SHA-256 of what came; if it is not the one expected, nothing of it is kept."""
    size = job.here
    if job.download.bytes not in (None, size):
        job.discard()
        raise _wrong_size(job, size)
    found = sha256(job.partial)
    expected, origin = _expected(job)
    if expected is None and _is_page(job):
        job.discard()
        raise GapinitError(
            f"{job.url}: what came is not {job.download.file_name} but, it seems, a web page, of "
            "a proxy or a login. It was deleted. Look at the address in a browser."
        )
    if expected not in (None, found):
        job.discard()
        raise GapinitError(
            f"{job.url}: wrong SHA-256, the download was deleted.\n  expected {expected} "
            f"({origin})\n  found    {found}\nRun again; if it stays so, the file there is another "
            "one: ask who publishes it before the expected digest is changed or deleted."
        )
    return found


def _is_page(job: _Job) -> bool:
    """Tell whether what came is plainly not the file: a digest of it must not be recorded."""
    with open(job.partial, "rb") as file:
        if file.read(512).lstrip().startswith(b"<"):
            return True
    return job.download.file_name.endswith(".zip") and not zipfile.is_zipfile(job.partial)


def _wrong_size(job: _Job, size: int) -> GapinitError:
    return GapinitError(
        f"{job.url}: {size} bytes, expected {job.download.bytes} ({job.table}: {job.name}). The "
        "file there is another one: ask who publishes it, or try another mirror."
    )


def _fetch(
    job: _Job,
    progress: bool,
    attempts: int,
    first_wait_s: float,
    timeout_s: tuple[float, float],
) -> None:
    """Bring the whole file to `.partial`, in as many attempts as it takes or are allowed."""
    failures, furthest = 0, job.here
    with requests.Session() as session:
        session.headers.update({"User-Agent": "gapinit", "Accept-Encoding": "identity"})
        while True:
            try:
                _attempt(job, session, progress, timeout_s)
                return
            except _Interrupted as error:
                here = job.here
                failures = 1 if here - furthest >= ENOUGH else failures + 1
                furthest = max(furthest, here)
                if failures >= attempts:
                    raise GapinitError(
                        f"{job.url}: {error}; given up after {attempts} attempts. "
                        f"{show_bytes(here)} are kept in {job.partial}; running again resumes."
                    ) from None
                wait = first_wait_s * 2 ** (failures - 1)
                print(f"{job.name}: {error}; again in {wait:.0f} s", file=sys.stderr, flush=True)
                time.sleep(wait)


def _attempt(
    job: _Job, session: requests.Session, progress: bool, timeout_s: tuple[float, float]
) -> None:
    """Ask for what is missing and write it; end only when the file is complete."""
    try:
        headers = _range_headers(job)
        with session.get(job.url, headers=headers, stream=True, timeout=timeout_s) as response:
            start, total = _placed(job, response)
            if start is not None:
                _write(job, response, start, total, progress)
    except requests.exceptions.SSLError as error:
        raise GapinitError(f"{job.url}: no secure connection ({error})") from None
    except requests.Timeout:
        raise _Interrupted("no answer in time") from None
    except requests.exceptions.ChunkedEncodingError:
        raise _Interrupted("the connection broke in the middle") from None
    except requests.ConnectionError as error:
        raise _Interrupted(f"no connection ({error})") from None
    except requests.RequestException as error:
        raise GapinitError(f"{job.url}: cannot be fetched ({error})") from None
    if total is None:
        total = job.download.bytes
    if total is not None and job.here < total:
        raise _Interrupted(f"{job.here} of {total} bytes came")


def _range_headers(job: _Job) -> dict[str, str]:
    """Return the headers that ask for the rest of what is here.

    Without a mark of the server's version only a pinned SHA-256 can tell that the pieces belong
    together; with neither, all of it is fetched again.
    """
    known = _remembered(job)
    etag = known.get("ETag", "")
    # A weak ETag says that two versions mean the same, not that their bytes are the same.
    mark = known.get("Last-Modified") if not etag or etag.startswith("W/") else etag
    if not job.here or (mark is None and job.download.sha256 is None):
        return {}
    resumed = {"Range": f"bytes={job.here}-"}
    return resumed if mark is None else {**resumed, "If-Range": mark}


def _remembered(job: _Job) -> dict[str, str]:
    """Return what identified the file on the server when its first bytes came from there."""
    try:
        state = read_json(job.beside(".partial.json"))
    except GapinitError:  # none, or damaged: as good as none
        return {}
    if not isinstance(state, dict) or state.get("url") != job.url:
        return {}
    return {mark: state[mark] for mark in MARKS if isinstance(state.get(mark), str)}


def _placed(job: _Job, response: requests.Response) -> tuple[int | None, int | None]:
    """Return where in the file the response begins and the file's size, if the server says it.

    The place is None if nothing is missing. An answer that cannot be used is an error.
    """
    status, here = response.status_code, job.here
    if status >= 500 or status in BUSY:
        raise _Interrupted(f"the server answered {status} {response.reason}")
    if status not in (200, 206, 416):
        raise GapinitError(f"{job.url}: the server answered {status} {response.reason}")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity" and status != 416:
        raise GapinitError(f"{job.url}: the server sent it encoded as '{encoding}', unasked")
    if status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    known = _remembered(job)
    same = all(response.headers.get(mark, value) == value for mark, value in known.items())
    ranges = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "")
    )
    first, size = ranges.groups() if ranges else (None, None)
    total = int(size) if size and size.isdigit() else None
    if same and status == 416 and total == here:
        return None, total
    if same and status == 206 and first == str(here):
        return here, total
    job.discard()
    raise _Interrupted(f"the server's file does not go on from the {here} bytes here, now deleted")


def _write(
    job: _Job, response: requests.Response, start: int, total: int | None, progress: bool
) -> None:
    """Append the response to `.partial`, after a check that it is the right file and fits."""
    if total is not None and job.download.bytes not in (None, total):
        raise _wrong_size(job, total)
    if start == 0:
        if job.here:
            print(f"{job.name}: the server gives no rest; from the start", file=sys.stderr)
        job.discard()
        marks = {mark: response.headers[mark] for mark in MARKS if mark in response.headers}
        # Bookkeeping without a digest: damaged, it is as good as none.
        note = json.dumps({"url": job.url, **marks})
        job.beside(".partial.json").write_text(note, encoding="utf-8")
    whole = total or job.download.bytes
    free = shutil.disk_usage(job.output.parent).free
    if whole is not None and whole - start > free:
        raise GapinitError(
            f"{job.output.parent}: {show_bytes(free)} are free, {job.name} needs "
            f"{show_bytes(whole - start)}. Make room, or give an output on another disk."
        )
    here = start
    bar = track_bytes(job.name, whole, start) if progress else nullcontext(_silent)
    with open(job.partial, "ab") as file, bar as advance:
        for piece in response.iter_content(CHUNK):
            here += len(piece)
            if whole is not None and here > whole:
                raise _wrong_size(job, here)
            file.write(piece)
            advance(len(piece))
        file.flush()
        os.fsync(file.fileno())


def _silent(count: int) -> None:
    """Show nothing."""
