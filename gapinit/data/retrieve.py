"""Download one file of the table of downloads, with resume, and verify its SHA-256.

Files next to the output: `.partial` (the bytes so far), `.sha256` (the checksum, if the table has
none) and `.lock`. A download is resumed only if the table has its SHA-256: the checksum proves that
all pieces belong to one version of the file.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import requests
from filelock import FileLock

from gapinit.artifacts.artifacts import sha256
from gapinit.data.downloads import Download, find_download, instructions
from gapinit.errors import GapinitError
from gapinit.progress import show_bytes, track_bytes

WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # between attempts
TIMEOUT_S = (15.0, 60.0)  # for the connection; between two pieces
CHUNK = 1 << 16  # a broken connection loses at most this many bytes
ENOUGH = 1 << 20  # an attempt that downloads this many new bytes resets the count of attempts
BUSY = (408, 429)  # temporary, like the server errors (500 and above)
_ADVICE = "The publisher may have replaced the file: ask the publisher, or try another mirror."


@dataclass(frozen=True)
class _Job:
    """One file to download, and the files next to it."""

    name: str
    table: Path
    download: Download
    url: str
    output: Path

    @property
    def partial(self) -> Path:
        """The file that holds the downloaded bytes."""
        return self.output.with_name(f"{self.output.name}.partial")

    @property
    def here(self) -> int:
        """The number of downloaded bytes."""
        return self.partial.stat().st_size if self.partial.exists() else 0


class _Interrupted(Exception):
    """The attempt failed; another attempt may succeed."""


def retrieve(
    name: str,
    table: Path,
    output: Path,
    mirror: str | None = None,
    *,
    waits_s: Sequence[float] = WAITS_S,
    timeout_s: tuple[float, float] = TIMEOUT_S,
) -> None:
    """Download the file of entry `name` of `table` to `output`, from its URL or from a mirror.

    An interrupted download is resumed. Nothing is downloaded if `output` exists with the right
    SHA-256. If the user has to download the file by hand, the error explains how.
    """
    download = find_download(table, name)
    if download.manual is not None:
        raise GapinitError(instructions(name, download, "DATA_FOLDER"))
    job = _Job(name, table, download, _address(download, mirror), output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{output}.lock"):
            if output.exists():
                problem = _problem(job, output)
                if problem is None:
                    return
                print(f"{output}: {problem}; downloading it again", file=sys.stderr)
            _fetch(job, waits_s, timeout_s)
            problem = _problem(job, job.partial)
            if problem is not None:
                job.partial.unlink()
                raise GapinitError(f"{job.url}: {problem}\nThe download was deleted. {_ADVICE}")
            os.replace(job.partial, output)
    except OSError as error:
        raise GapinitError(f"{output}: cannot be written ({error.strerror})") from None


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise GapinitError if a folder's disk has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise GapinitError(
            f"{folder}: {show_bytes(free)} are free, {what} needs {show_bytes(needed)}. Free "
            "some space, or use a folder on another disk."
        )


def _address(download: Download, mirror: str | None) -> str:
    if mirror is None:
        return str(download.url)
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", mirror):
        raise GapinitError(
            f"mirror '{mirror}': expected the address of a folder, http://HOST/... or https://..."
        )
    return f"{mirror.rstrip('/')}/{download.file_name}"


def _problem(job: _Job, path: Path) -> str | None:
    """Return why a file is not the one in the table, or None.

    If the table has no checksum for the file, the first download's is recorded and required later.
    """
    size, found = path.stat().st_size, sha256(path)
    if job.download.bytes not in (None, size):
        return f"{size} bytes, expected {job.download.bytes} ({job.table}: {job.name})"
    expected, origin = job.download.sha256, f"{job.table}: {job.name}"
    record = job.output.with_name(f"{job.output.name}.sha256")
    if expected is None and record.exists():
        expected, origin = record.read_text(encoding="utf-8", errors="replace")[:64], str(record)
        if not re.fullmatch(r"[0-9a-f]{64}", expected):
            raise GapinitError(f"{record}: holds no SHA-256. Delete it and run again.")
    if expected not in (None, found):
        return f"wrong SHA-256\n  expected {expected} ({origin})\n  found    {found}"
    if expected is None and _is_page(path, job.download.file_name):
        return f"expected {job.download.file_name}, found what seems to be a proxy's web page"
    if expected is None:
        record.write_text(f"{found}  {job.output.name}\n", encoding="utf-8")
        print(
            f"{job.name}: no SHA-256 in {job.table}; the SHA-256 of this file is kept in {record}. "
            f"To pin it, set this below '{job.name}:' in {job.table}:\n  sha256: {found}",
            file=sys.stderr,
        )
    return None


def _is_page(path: Path, name: str) -> bool:
    """Tell whether a file is not the expected one: a web page, or no zip archive."""
    with open(path, "rb") as file:
        if file.read(512).lstrip().startswith(b"<"):
            return True
    return name.endswith(".zip") and not zipfile.is_zipfile(path)


def _require_size(job: _Job, size: int) -> None:
    if job.download.bytes not in (None, size):
        expected = f"expected {job.download.bytes} ({job.table}: {job.name})"
        raise GapinitError(f"{job.url}: {size} bytes, {expected}. {_ADVICE}")


def _fetch(job: _Job, waits_s: Sequence[float], timeout_s: tuple[float, float]) -> None:
    """Download the whole file to `.partial`; wait and try again after an interruption."""
    failures, furthest = 0, job.here
    with requests.Session() as session:
        session.headers.update({"User-Agent": "gapinit", "Accept-Encoding": "identity"})
        while True:
            try:
                _attempt(job, session, timeout_s)
                return
            except _Interrupted as error:
                here = job.here
                failures = 1 if here - furthest >= ENOUGH else failures + 1
                furthest = max(furthest, here)
                if failures > len(waits_s):
                    raise GapinitError(
                        f"{job.url}: {error}; given up after {failures} attempts. "
                        f"{show_bytes(here)} are kept in {job.partial}; run again to resume."
                    ) from None
                wait = waits_s[failures - 1]
                print(
                    f"{job.name}: {error}; next attempt in {wait:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
                time.sleep(wait)


def _attempt(job: _Job, session: requests.Session, timeout_s: tuple[float, float]) -> None:
    """Request the missing bytes and write them; return only when the file is complete."""
    asked = job.here if job.download.sha256 is not None else 0
    headers = {"Range": f"bytes={asked}-"} if asked else {}
    try:
        with session.get(job.url, headers=headers, stream=True, timeout=timeout_s) as response:
            start, total = _start_and_total(job, response, asked)
            if response.status_code != 416:
                _write(job, response, start, total)
    except requests.RequestException as error:
        passing = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
        refused = isinstance(error, requests.exceptions.SSLError)
        if isinstance(error, (*passing, requests.Timeout)) and not refused:
            raise _Interrupted(f"the connection failed ({error})") from None
        raise GapinitError(f"{job.url}: cannot be fetched ({error})") from None
    if total is not None and job.here < total:
        raise _Interrupted(f"{job.here} of {total} bytes arrived")


def _start_and_total(job: _Job, response: requests.Response, asked: int) -> tuple[int, int | None]:
    """Return the response's offset in the file, and the file's size if it is known.

    Status 416 is a success if the file has exactly the `asked` bytes that are here already.
    """
    status = response.status_code
    if status >= 500 or status in BUSY:
        raise _Interrupted(f"the server answered {status} {response.reason}")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise GapinitError(f"{job.url}: expected the file itself, found it encoded as '{encoding}'")
    if status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else job.download.bytes
    if not asked or status not in (206, 416):
        raise GapinitError(f"{job.url}: the server answered {status} {response.reason}")
    pattern = rf"bytes (?:{asked}-\d+/(\d+)|\*/({asked}))"
    found = re.fullmatch(pattern, response.headers.get("Content-Range", ""))
    if found is None:
        job.partial.unlink()
        raise _Interrupted(f"the server cannot resume after {asked} bytes; they were deleted")
    return asked, int(found[1] or found[2])


def _write(job: _Job, response: requests.Response, start: int, total: int | None) -> None:
    """Append the response to `.partial`, or overwrite it; the size must be the expected one."""
    if total is not None:
        _require_size(job, total)
        require_space(job.output.parent, total - start, job.name)
    here = start
    mode = "ab" if start else "wb"
    with open(job.partial, mode) as file, track_bytes(job.name, total, start) as advance:
        for piece in response.iter_content(CHUNK):
            here += len(piece)
            if total is not None and here > total:
                _require_size(job, here)
            file.write(piece)
            advance(len(piece))
        file.flush()
        os.fsync(file.fileno())
