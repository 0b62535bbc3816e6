"""SHA-256 of every file that gapinit writes, beside it: a changed byte never counts as data.

A file `name` has `.name.sha256` beside it; a folder that is written as a whole has `.sha256` in it,
one line a file. Both are in the format of `sha256sum`, so that `sha256sum --check` reads them, too.
They stand against accidents (a bad disk, a torn copy, a file of another run), not against someone
who changes a file and its digest. No torch.

What it costs: a file is read once more when it is written, which the page cache answers, and once
by each process that reads it, unless it has `SEEN_ONCE` bytes or more. Such a file (a trunk, a
backbone) is not hashed by its readers as long as its inode, size and times are those at which it
was hashed last, kept in `.name.sha256-read`; `gapinit verify` hashes it always. A file without a
record is another's and passes; a record that is left of an earlier file is replaced with the file.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from gapinit.errors import GapinitError

LISTING = ".sha256"
"""The list of a whole folder, in that folder."""
SEEN_ONCE = 1 << 28
"""Larger files are read for their digest once, and again only when their inode has changed."""
LEVELS = 8
"""How far above a file a list that names it is looked for."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_file(path: Path) -> Path:
    """Return where the digest of a file of its own is."""
    return path.with_name(f".{path.name}.sha256")


def is_record(path: Path) -> bool:
    """Return whether a path is one of this module's own files."""
    return path.name.startswith(".") and path.name.endswith((".sha256", ".sha256-read"))


def record(path: Path, written: Path) -> None:
    """Keep the digest of `written`, which is about to become `path`.

    It is there before the file is: a file without its digest would be one that nobody checks.
    """
    _write(digest_file(path), [(sha256(written), path.name)])


def record_folder(folder: Path) -> None:
    """Keep the digest of every file below a folder in its list; links are not followed.

    The list is then the only record of a file that had one of its own.
    """
    for path in folder.rglob(".*.sha256"):
        path.unlink()
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    files = [path for path in paths if not is_record(path)]
    _write(
        folder / LISTING, [(sha256(path), path.relative_to(folder).as_posix()) for path in files]
    )


def write_listing(path: Path, digests: Mapping[str, str]) -> None:
    """Write a list of digests by file name, and its own digest beside it."""
    lines = [(digests[name], name) for name in sorted(digests)]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(_text(lines), encoding="utf-8", newline="\n")
        record(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_listing(path: Path) -> dict[str, str]:
    """Return the digests in a list, by file name."""
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size)


def recorded(path: Path) -> list[tuple[Path, str]]:
    """Return every record of a file and the digest it says: its own, and those of its folders."""
    path = Path(os.path.abspath(path))
    found = []
    own = digest_file(path)
    if own.is_file():
        # Written again since its folder was: the newer of the two.
        return [(own, read_listing(own).get(path.name, ""))]
    for parent in list(path.parents)[:LEVELS]:
        listing = parent / LISTING
        if listing.is_file():
            said = read_listing(listing).get(path.relative_to(parent).as_posix())
            found += [] if said is None else [(listing, said)]
    return found


def require_unaltered(path: Path, content: bytes | None = None) -> None:
    """Raise GapinitError if a file is not what was written; one without a record passes.

    `content`: the file's bytes, if they have been read already.
    """
    path = Path(path)
    records = recorded(path)
    if not records or (content is None and _seen(path)):
        return
    found = sha256(path) if content is None else hashlib.sha256(content).hexdigest()
    wrong = next((place for place, said in records if said != found), None)
    if wrong is not None and not _being_replaced(path):
        raise GapinitError(
            f"{path}: altered since it was written (its SHA-256 is not the one in {wrong}). "
            "Delete it and run the stage that makes it again; if you changed it on purpose, "
            f"delete {wrong.name}, too."
        )
    if content is None:
        mark_checked(path)


def _being_replaced(path: Path) -> bool:
    """Return whether a file and its digest agree now: its writer renames one, then the other."""
    for _ in range(3):
        time.sleep(0.01)
        if path.is_file() and all(said == sha256(path) for _, said in recorded(path)):
            return True
    return False


def require_folder_unaltered(folder: Path) -> None:
    """Raise GapinitError for the first file of a folder's list that is missing or altered."""
    folder = Path(folder)
    listing = folder / LISTING
    if not listing.is_file():
        return
    for name in read_listing(listing):
        if not (folder / name).is_file():
            raise GapinitError(
                f"{folder / name}: missing, but it was written with the others in {listing}. "
                f"Delete {folder} and run the stage that makes it again."
            )
        require_unaltered(folder / name)


def require_listed(listing: Path, root: Path, paths: Iterable[Path]) -> None:
    """Raise GapinitError for the first of some files below `root` that is not as a list says."""
    if not listing.is_file():
        return
    require_unaltered(listing)
    digests = read_listing(listing)
    for path in paths:
        said = digests.get(Path(os.path.relpath(path, root)).as_posix())
        if said is not None and (not path.is_file() or sha256(path) != said):
            raise GapinitError(
                f"{path}: altered or missing since the dataset was checked ({listing}). Put the "
                "file back, or delete the manifest beside that list and run `gapinit data` again."
            )


@lru_cache(maxsize=64)
def _read(path: Path, _changed: int, _size: int) -> dict[str, str]:
    found = {}
    for line in path.read_bytes().decode("utf-8", "replace").splitlines():
        said, _, name = line.partition("  ")
        found[name.replace("\\n", "\n").replace("\\\\", "\\") if said[:1] == "\\" else name] = (
            said.removeprefix("\\")
        )
    return found


def _text(lines: Iterable[tuple[str, str]]) -> str:
    text = ""
    for said, name in lines:
        # As sha256sum does: a name with a backslash or a line break is marked and escaped.
        odd = "\\" in name or "\n" in name
        text += f"\\{said}  " if odd else f"{said}  "
        text += name.replace("\\", "\\\\").replace("\n", "\\n") if odd else name
        text += "\n"
    return text


def _write(path: Path, lines: Iterable[tuple[str, str]]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(_text(lines), encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _mark(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256-read")


def _seen(path: Path) -> bool:
    """Return whether a large file was checked before and not touched since."""
    if path.stat().st_size < SEEN_ONCE:
        return False
    try:
        return _mark(path).read_text(encoding="utf-8") == _stamp(path)
    except OSError:
        return False


def mark_checked(path: Path) -> None:
    """Keep that a large file is as recorded, with its inode and times: it was just read for it."""
    if path.stat().st_size < SEEN_ONCE:
        return
    try:
        _mark(path).write_text(_stamp(path), encoding="utf-8")
    except OSError:  # a folder that cannot be written is read again each time
        return
