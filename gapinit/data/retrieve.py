"""Fetch one file of the table of downloads: resumable, and named as the table says once verified.

Beside the output lie `.partial` with the bytes so far, `.sha256` with the digest of a file for
which the table has none, and `.lock`. Only a file whose SHA-256 the table pins is resumed: the
digest is what proves that the pieces belong to one version of the file.
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
CHUNK = 1 << 16  # what a broken connection loses at most
ENOUGH = 1 << 20  # an attempt that brings this many new bytes resets the count of attempts
BUSY = (408, 429)  # as temporary as the server errors from 500 on


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
        """The file that holds the bytes so far."""
        return self.beside(".partial")

    @property
    def here(self) -> int:
        """The number of bytes so far."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    def discard(self) -> None:
        """Delete the bytes so far."""
        self.partial.unlink(missing_ok=True)


class _Interrupted(Exception):
    """The attempt failed, and another attempt may succeed."""


def retrieve(
    name: str,
    table: Path,
    output: Path,
    mirror: str | None = None,
    *,
    waits_s: Sequence[float] = WAITS_S,
    timeout_s: tuple[float, float] = TIMEOUT_S,
) -> None:
    """Fetch the file of entry `name` of `table` to `output`, from its URL or from a mirror.

    An interrupted download is resumed. Nothing is fetched if `output` exists with the right
    SHA-256. For an entry that a user has to fetch by hand, the error says how.
    """
    table, output = Path(table), Path(output)
    download = find_download(table, name)
    if download.manual is not None:
        raise GapinitError(instructions(name, download, "DATA_FOLDER"))
    job = _Job(name, table, download, _address(download, mirror), output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{output}.lock"):
            if _is_there(job):
                return
            _fetch(job, waits_s, timeout_s)
            found = _verify(job)
            os.replace(job.partial, output)
            _record(job, found)
    except OSError as error:
        raise GapinitError(f"{output}: cannot be written ({error.strerror})") from None


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise GapinitError if the disk of a folder has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise GapinitError(
            f"{folder}: {show_bytes(free)} are free, {what} needs {show_bytes(needed)}. Make room, "
            "or use a folder on another disk."
        )


def _address(download: Download, mirror: str | None) -> str:
    if mirror is None:
        return str(download.url)
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", mirror):
        raise GapinitError(
            f"mirror '{mirror}': expected the address of a folder, http://HOST/... or https://..."
        )
    return f"{mirror.rstrip('/')}/{download.file_name}"


def _expected(job: _Job) -> tuple[str | None, str]:
    """Return the SHA-256 that the file must have, if one is known, and where it is written."""
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
    """Tell whether the output exists with the right size and digest; a wrong one is replaced."""
    if not job.output.exists():
        return False
    expected, origin = _expected(job)
    size, found = job.output.stat().st_size, sha256(job.output)
    if job.download.bytes not in (None, size) or expected not in (None, found):
        print(f"{job.output}: not the file of {origin or job.table}; fetching it", file=sys.stderr)
        return False
    _record(job, found)
    return True


def _record(job: _Job, found: str) -> None:
    """Keep the digest of a file for which the table has none, and say how to pin it."""
    record = job.beside(".sha256")
    if job.download.sha256 is not None or record.exists():
        return
    record.write_text(f"{found}  {job.output.name}\n", encoding="utf-8")
    print(
        f"{job.name}: {job.table} has no SHA-256 for it; the SHA-256 of this download is kept in "
        f"{record}. To pin it, set this below '{job.name}:' in {job.table}:\n  sha256: {found}",
        file=sys.stderr,
    )


def _verify(job: _Job) -> str:
    """Return the SHA-256 of the download; a wrong download is deleted and an error."""
    size, found = job.here, sha256(job.partial)
    expected, origin = _expected(job)
    if job.download.bytes not in (None, size):
        job.discard()
        raise _wrong_size(job, size)
    if expected is None and _is_page(job):
        job.discard()
        raise GapinitError(
            f"{job.url}: expected {job.download.file_name}, found what seems to be a web page, of "
            "a proxy or a login. It was deleted. Look at the address in a browser."
        )
    if expected not in (None, found):
        job.discard()
        raise GapinitError(
            f"{job.url}: wrong SHA-256, the download was deleted.\n  expected {expected} "
            f"({origin})\n  found    {found}\nRun again; if the digest stays wrong, the publisher "
            "may have replaced the file: ask them before you change the expected digest."
        )
    return found


def _is_page(job: _Job) -> bool:
    """Tell whether the download is plainly another file: its digest must not be recorded."""
    with open(job.partial, "rb") as file:
        if file.read(512).lstrip().startswith(b"<"):
            return True
    return job.download.file_name.endswith(".zip") and not zipfile.is_zipfile(job.partial)


def _wrong_size(job: _Job, size: int) -> GapinitError:
    return GapinitError(
        f"{job.url}: {size} bytes, expected {job.download.bytes} ({job.table}: {job.name}). The "
        "publisher may have replaced the file: ask them, or try another mirror."
    )


def _fetch(job: _Job, waits_s: Sequence[float], timeout_s: tuple[float, float]) -> None:
    """Bring the whole file to `.partial`, in as many attempts as are allowed."""
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
                        f"{show_bytes(here)} are kept in {job.partial}; run again to continue."
                    ) from None
                wait = waits_s[failures - 1]
                print(f"{job.name}: {error}; again in {wait:.0f} s", file=sys.stderr, flush=True)
                time.sleep(wait)


def _attempt(job: _Job, session: requests.Session, timeout_s: tuple[float, float]) -> None:
    """Ask for the missing bytes and write them; return only when the file is complete."""
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
        raise _Interrupted(f"{job.here} of {total} bytes came")


def _start_and_total(job: _Job, response: requests.Response, asked: int) -> tuple[int, int | None]:
    """Return where in the file the response begins, and the file's size if one is known.

    Status 416 ends well if the file has exactly the `asked` bytes that are here already.
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
        job.discard()
        raise _Interrupted(f"the server's file does not continue the {asked} bytes, now deleted")
    return asked, int(found[1] or found[2])


def _write(job: _Job, response: requests.Response, start: int, total: int | None) -> None:
    """Append the response to `.partial`, or start it again, if the size is the expected one."""
    if total is not None:
        if job.download.bytes not in (None, total):
            raise _wrong_size(job, total)
        require_space(job.output.parent, total - start, job.name)
    here = start
    mode = "ab" if start else "wb"
    with open(job.partial, mode) as file, track_bytes(job.name, total, start) as advance:
        for piece in response.iter_content(CHUNK):
            here += len(piece)
            if total is not None and here > total:
                raise _wrong_size(job, here)
            file.write(piece)
            advance(len(piece))
        file.flush()
        os.fsync(file.fileno())
