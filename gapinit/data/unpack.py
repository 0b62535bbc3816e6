"""Install a downloaded file in its folder, never outside: unpack an archive or link a plain file.

A stamp file is written when all paths that the table lists under `holds` exist.
"""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from filelock import FileLock

from gapinit.artifacts.artifacts import sha256, write_json
from gapinit.data.downloads import Download, find_download, instructions, missing_paths
from gapinit.data.locate import leaves_root
from gapinit.data.retrieve import require_space
from gapinit.errors import GapinitError
from gapinit.progress import track

CHUNK = 1 << 20
IGNORED = "__MACOSX"  # macOS adds this folder to archives
# zipfile's exceptions for a damaged or unsupported archive.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


def unpack(name: str, table: Path, root: Path, output: Path, archive: Path | None = None) -> None:
    """Install the file of entry `name` below the data folder `root`; write `output`, its stamp.

    A manual entry has no archive: its files must exist already.
    """
    download = find_download(table, name)
    folder = root / download.folder
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{output}.lock"):
            if download.manual is not None:
                stamp = _check_by_hand(name, download, root, archive)
            else:
                stamp = _put(name, download, folder, archive)
                absent = missing_paths(download, root)
                if absent:
                    raise GapinitError(
                        f"{archive}: does not contain {', '.join(map(str, absent))}. "
                        f"Compare 'holds' and 'url' of '{name}' in {table}."
                    )
            os.sync()  # once for all files: flushing each would take minutes
            write_json(output, {"name": name, "folder": download.folder, **stamp})
    except OSError as error:
        place = error.filename or folder
        raise GapinitError(f"{place}: {error.strerror}, while unpacking {archive}") from None


def _check_by_hand(
    name: str, download: Download, root: Path, archive: Path | None
) -> dict[str, object]:
    if archive is not None:
        raise GapinitError(f"{name}: is downloaded by hand and takes no archive ({archive})")
    absent = missing_paths(download, root)
    if absent:
        text = instructions(name, download, root)
        raise GapinitError(f"{text}\nMissing: {', '.join(map(str, absent))}")
    sizes = []
    for path in (root / download.folder / held for held in download.holds):
        files = [path] if path.is_file() else (one for one in path.rglob("*") if one.is_file())
        sizes += [file.stat().st_size for file in files]
    if not sizes:
        held = ", ".join(download.holds)
        raise GapinitError(f"{root / download.folder}: no file in {held}\n{download.manual}")
    return {"sha256": None, "files": len(sizes), "bytes": sum(sizes)}


def _put(name: str, download: Download, folder: Path, archive: Path | None) -> dict[str, object]:
    if archive is None or not archive.is_file():
        raise GapinitError(
            f"{archive}: no such file. `gapinit data retrieve --name {name}` fetches the archive."
        )
    digest = sha256(archive)
    if download.sha256 not in (None, digest):
        raise GapinitError(
            f"{archive}: wrong SHA-256, expected {download.sha256}, found {digest}. Delete it "
            f"and fetch it again: `gapinit data retrieve --name {name}`."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if download.unpack:
        files, size = _unpack_zip(archive, folder, name)
    else:
        files, size = 1, archive.stat().st_size
        _link(archive, folder / download.file_name)
    return {"archive": archive.name, "sha256": digest, "files": files, "bytes": size}


def _link(archive: Path, target: Path) -> None:
    """Hard-link the file to its place, or copy it if the disk does not allow that."""
    if target.exists() and target.samefile(archive):
        return
    target.unlink(missing_ok=True)
    try:
        os.link(archive, target)
    except OSError:  # another disk, or no hard links
        require_space(target.parent, archive.stat().st_size, str(archive))
        shutil.copyfile(archive, target)


def _unpack_zip(archive: Path, folder: Path, title: str) -> tuple[int, int]:
    """Unpack all files of a zip; return their number and size in bytes."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _checked_members(archive, opened.infolist())
            size = sum(one.file_size for one in members)
            require_space(folder, size, str(archive))
            for member in track(members, f"{title}: files"):
                _write_member(opened, member, folder / member.filename)
    except (*DAMAGED, OSError) as error:
        # zipfile's own OSErrors (offset outside the archive, broken bzip2 stream) name no file.
        number = getattr(error, "errno", None)
        if getattr(error, "filename", None) is not None or number not in (None, errno.EINVAL):
            raise
        raise GapinitError(
            f"{archive}: not a whole zip archive ({error}). Delete it and fetch it again."
        ) from None
    return len(members), size


def _checked_members(archive: Path, members: Iterable[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """Return the members that are files; an unsafe or duplicate member is an error."""
    files: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        path = PurePosixPath(member.filename)
        if path.parts[:1] == (IGNORED,):
            continue
        problem = "occurs twice" if str(path) in files else _problem(member)
        if problem is not None:
            raise GapinitError(f"{archive}: member '{member.filename}' {problem}; nothing unpacked")
        if not member.is_dir():
            files[str(path)] = member
    return list(files.values())


def _problem(member: zipfile.ZipInfo) -> str | None:
    """Return why a member must not be unpacked, or None."""
    if not PurePosixPath(member.filename).parts and not member.is_dir():
        return "has no name"
    if leaves_root(member.filename) or "\\" in member.filename:
        return "would leave the folder"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or another special file"
    return "is encrypted" if member.flag_bits & 1 else None


def _write_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Write one file; a size or CRC other than declared is damage."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with opened.open(member) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, CHUNK)  # zipfile stops at the declared size
            if file.tell() != member.file_size:
                raise zipfile.BadZipFile(f"'{member.filename}' ends after {file.tell()} bytes")
    except Exception:
        target.unlink(missing_ok=True)
        raise
