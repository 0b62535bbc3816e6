"""SHA-256 checksums of the files that gapinit writes, stored beside them and verified by readers.

The checksum of a file `name` is recorded in `.name.sha256`; a folder that is written as a whole has
one record, `.sha256`, with one line per file. `sha256sum --check` reads both. Checksums find
accidents (a bad disk, a partial copy, a file of another run), not attacks: whoever can change a
file can change its record. A file without a record is not verified. No torch.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from gapinit.errors import GapinitError

LISTING = ".sha256"
"""The record of a whole folder, in that folder."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_file(path: Path) -> Path:
    """Return the path of a single file's record."""
    return path.with_name(f".{path.name}.sha256")


def is_record(path: Path) -> bool:
    """Return whether a path is a record of checksums."""
    return path.name.startswith(".") and path.name.endswith(".sha256")


def record(path: Path, written: Path) -> None:
    """Write the record of `written`, which the caller then renames to `path`.

    The record is written first, so that an artifact always has one.
    """
    _write(digest_file(path), {path.name: sha256(written)})


def record_folder(folder: Path) -> None:
    """Replace the records below a folder by one for all its files; links are left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    for path in filter(is_record, paths):
        path.unlink()
    files = [path for path in paths if not is_record(path)]
    _write(folder / LISTING, {path.relative_to(folder).as_posix(): sha256(path) for path in files})


def write_listing(path: Path, digests: Mapping[str, str]) -> None:
    """Write checksums by file name as a list, and the record of that list."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _write(temporary, dict(sorted(digests.items())))
    record(path, temporary)
    os.replace(temporary, path)


def read_listing(path: Path) -> dict[str, str]:
    """Return the checksums in a list, by file name."""
    found = {}
    for line in path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]:
        said, _, name = line.partition("  ")
        # A backslash at the start of a line is sha256sum's mark for an escaped name.
        if said.startswith("\\"):
            said, name = said[1:], name.replace("\\n", "\n").replace("\\\\", "\\")
        found[name] = said
    return found


def recorded(path: Path) -> tuple[Path, str] | None:
    """Return a file's record and checksum, from its own record or the nearest folder's."""
    path = Path(os.path.abspath(path))
    own = digest_file(path)
    if own.is_file():
        return own, read_listing(own).get(path.name, "")
    for listing in _listings(path):
        said = read_listing(listing).get(path.relative_to(listing.parent).as_posix())
        if said is not None:
            return listing, said
    return None


def require_unaltered(path: Path, content: bytes | None = None) -> None:
    """Raise GapinitError if a file's checksum is not the recorded one.

    `content`: the file's bytes if the caller has read them.
    """
    path = Path(path)
    if (found := recorded(path)) is None:
        return
    now = _checksum(path) if content is None else hashlib.sha256(content).hexdigest()
    for _ in range(3):
        listing, said = found
        if said == now:
            return
        # A writer may have replaced the record but not yet the file.
        time.sleep(0.01)
        found, now = recorded(path) or found, _checksum(path)
    raise GapinitError(
        f"{path}: altered since it was written (its SHA-256 differs from the one in {listing}). "
        "Delete it and run its stage again; if you changed it on purpose, "
        f"delete {listing.name} instead."
    )


def require_folder_unaltered(folder: Path) -> None:
    """Raise GapinitError for the first recorded file of a folder that is missing or altered."""
    folder = Path(os.path.abspath(folder))
    for listing in _listings(folder / LISTING):
        for path in (listing.parent / name for name in read_listing(listing)):
            if not path.is_relative_to(folder):
                continue
            if not path.is_file():
                raise GapinitError(
                    f"{path}: missing, but recorded in {listing}. Delete {folder} and run its "
                    "stage again."
                )
            require_unaltered(path)


def require_listed(listing: Path, root: Path, paths: Iterable[Path]) -> None:
    """Raise GapinitError for the first of some files below `root` that differs from the list."""
    if not listing.is_file():
        return
    require_unaltered(listing)
    digests = read_listing(listing)
    for path in paths:
        said = digests.get(Path(os.path.relpath(path, root)).as_posix())
        if said is not None and (not path.is_file() or sha256(path) != said):
            raise GapinitError(
                f"{path}: altered or missing since the dataset was checked ({listing}). Restore "
                "it, or delete the manifest in that folder and run `gapinit data` again."
            )


def _listings(path: Path) -> Iterator[Path]:
    """Yield the records of a path's parent folders, the innermost first."""
    return (parent / LISTING for parent in path.parents if (parent / LISTING).is_file())


def _checksum(path: Path) -> str:
    status = path.stat()
    return _checksum_once(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _checksum_once(path: Path, _inode: int, _size: int, _changed: int) -> str:
    """Return a file's SHA-256; a process computes it once, however many readers verify it."""
    return sha256(path)


def _write(path: Path, digests: Mapping[str, str]) -> None:
    text = ""
    for name, said in digests.items():
        odd = "\\" in name or "\n" in name
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
        text += f"\\{said}  {escaped}\n" if odd else f"{said}  {name}\n"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
