"""SHA-256 checksums of the files that gapinit writes, kept beside them and checked by readers.

A file `name` has its record in `.name.sha256`; a folder that is written as a whole has one record,
`.sha256`, with a line for each file below it. `sha256sum --check` reads both. Checksums find
accidents (a bad disk, a torn copy, a file of another run); whoever can change a file can change its
record, too. A file without a record is read unchecked. No torch.
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
"""The records of a whole folder, in that folder."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_file(path: Path) -> Path:
    """Return where the record of a single file is."""
    return path.with_name(f".{path.name}.sha256")


def is_record(path: Path) -> bool:
    """Return whether a path is one of this module's own files."""
    return path.name.startswith(".") and path.name.endswith(".sha256")


def record(path: Path, written: Path) -> None:
    """Write the record of `written`, which is about to be renamed to `path`.

    The record comes first, so that a file of ours is never without one.
    """
    _write(digest_file(path), {path.name: sha256(written)})


def record_folder(folder: Path) -> None:
    """Write one record for all files below a folder, in place of those that some have; no links."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    for path in filter(is_record, paths):
        path.unlink()
    files = [path for path in paths if not is_record(path)]
    _write(folder / LISTING, {path.relative_to(folder).as_posix(): sha256(path) for path in files})


def write_listing(path: Path, digests: Mapping[str, str]) -> None:
    """Write a list of checksums by file name, and the record of the list itself."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _write(temporary, dict(sorted(digests.items())))
    record(path, temporary)
    os.replace(temporary, path)


def read_listing(path: Path) -> dict[str, str]:
    """Return the checksums in a list, by file name."""
    found = {}
    for line in path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]:
        said, _, name = line.partition("  ")
        # sha256sum marks a line whose name it has escaped with a backslash.
        if said.startswith("\\"):
            said, name = said[1:], name.replace("\\n", "\n").replace("\\\\", "\\")
        found[name] = said
    return found


def recorded(path: Path) -> tuple[Path, str] | None:
    """Return the record of a file and the checksum in it: its own, else its nearest folder's."""
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

    `content`: the file's bytes, if they have been read already.
    """
    path = Path(path)
    if (found := recorded(path)) is None:
        return
    now = _checksum(path) if content is None else hashlib.sha256(content).hexdigest()
    for _ in range(3):
        listing, said = found
        if said == now:
            return
        # Its writer may have replaced the record and not yet the file.
        time.sleep(0.01)
        found, now = recorded(path) or found, _checksum(path)
    raise GapinitError(
        f"{path}: altered since it was written (its SHA-256 is not the one in {listing}). "
        "Delete it and run the stage that makes it again; if you changed it on purpose, "
        f"delete {listing.name}, too."
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
                    f"{path}: missing, but it was written with the others in {listing}. Delete "
                    f"{folder} and run the stage that makes it again."
                )
            require_unaltered(path)


def require_listed(listing: Path, root: Path, paths: Iterable[Path]) -> None:
    """Raise GapinitError for the first of some files below `root` whose checksum is not listed."""
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


def _listings(path: Path) -> Iterator[Path]:
    """Yield the records of the folders that a path lies in, the innermost first."""
    return (parent / LISTING for parent in path.parents if (parent / LISTING).is_file())


def _checksum(path: Path) -> str:
    status = path.stat()
    return _checksum_once(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _checksum_once(path: Path, _inode: int, _size: int, _changed: int) -> str:
    """Return a file's SHA-256; a process reads it once, though several readers check the file."""
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
