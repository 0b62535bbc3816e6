"""Files that other stages read: written whole or not at all, and checked before they are read.

An artifact is written under a temporary name in its own folder, flushed to disk and renamed,
so that a killed job never leaves a half-written file under a final name. HDF5 artifacts carry
what made them (kind, format version, inputs, package versions) and a completeness mark.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapinit.artifacts import digests
from gapinit.artifacts.digests import mark_checked, record, record_folder, require_unaltered
from gapinit.artifacts.digests import sha256 as sha256  # other modules take it from here
from gapinit.artifacts.storage_errors import naming
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    import h5py

FORMAT_VERSION = 1
MAX_JSON = 1 << 31
"""Bytes; the largest annotation file of the benchmarks (VQAv2's) has 0.4 GB."""
RECORDED_PACKAGES = ("gapinit", "torch", "transformers", "peft", "numpy", "h5py", "tokenizers")


@contextmanager
def atomic_file(path: Path, *, recorded: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    `recorded`: keep its digest; not of a file that people edit.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_killed(path)
        try:
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            if recorded:
                record(path, temporary)
            os.replace(temporary, path)
            if recorded:
                mark_checked(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` if the block succeeds.

    A folder that is already there is replaced as a whole.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_killed(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            record_folder(temporary)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _clear_killed(path: Path) -> None:
    """Remove what writers of `path` left that were killed: nobody else would, and it may be large.

    No two machines write one file at a time (Snakemake's lock), so a number that no process here
    has is a dead writer's.
    """
    for left in path.parent.glob(f".{escape(path.name)}.*.partial"):
        number = left.name.removesuffix(".partial").rpartition(".")[2]
        if not number.isdigit() or int(number) == os.getpid() or _runs(int(number)):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_json(path: Path, content: Any, *, recorded: bool = True) -> None:
    """Write `content` as UTF-8 JSON, whole or not at all. NaN is refused: JSON has none.

    `recorded` as in `atomic_file`.
    """
    with atomic_file(path, recorded=recorded) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing, altered, unreadable or malformed one is an error naming it."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_JSON:
            raise GapinitError(
                f"{path}: {path.stat().st_size} bytes, more than the {MAX_JSON} that a JSON file "
                "may have here: reading it would take all memory. Split it."
            )
        content = path.read_bytes()
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such file") from None
    except OSError as error:
        raise GapinitError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise GapinitError(f"{str(path)!r}: no file name ({error})") from None
    try:
        value = parse_json(content.decode("utf-8"))
    except RecursionError:
        problem = "not a readable JSON (nested too deeply)"
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        problem = f"not valid JSON ({error})"
    except ValueError as error:  # a number of more digits than Python reads, NaN, a key twice
        problem = f"not a readable JSON ({error})"
    else:
        require_unaltered(path, content)
        return value
    advice = ". Delete it and run the stage that makes it again." if digests.recorded(path) else ""
    raise GapinitError(f"{path}: {problem}{advice}")


def parse_json(text: str) -> Any:
    """Return the value of a JSON text; NaN and a key that stands twice are a ValueError."""
    return json.loads(text, object_pairs_hook=_each_key_once, parse_constant=_no_constant)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!a} stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def digest(content: Any) -> str:
    """Return a SHA-256 of any JSON-like value, independent of the order of its keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def package_versions(packages: Sequence[str] = RECORDED_PACKAGES) -> dict[str, str]:
    """Return the installed versions of the packages that decide an artifact's numbers."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


@contextmanager
def create_hdf5(path: Path, kind: str, inputs: Mapping[str, Any]) -> Iterator[h5py.File]:
    """Open a new HDF5 artifact for writing; it appears under `path` only when complete.

    `kind` names what is in it ("states", "gap", "trunk", "features"); `inputs` is what it was
    made from (digests, sizes, options) and is kept with the package versions in its attributes.
    """
    import h5py

    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        write_header(file, kind, inputs)
        yield file
        file.attrs["complete"] = True


def write_header(file: h5py.File, kind: str, inputs: Mapping[str, Any]) -> None:
    """Write what an HDF5 artifact is and what it was made from."""
    file.attrs["kind"] = kind
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["inputs"] = json.dumps(dict(inputs), sort_keys=True, default=str)
    file.attrs["packages"] = json.dumps(package_versions(), sort_keys=True)


@contextmanager
def open_hdf5(path: Path, kind: str) -> Iterator[h5py.File]:
    """Open a complete HDF5 artifact of the given kind for reading, or say what is wrong with it."""
    import h5py

    path = Path(path)
    if not path.is_file():
        raise GapinitError(f"{path}: no such file (expected an HDF5 file of kind '{kind}')")
    ours = bool(digests.recorded(path))
    if ours:
        # First of all: HDF5's library may crash or loop without end on a flipped bit.
        require_unaltered(path)
    else:
        _require_readable(path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise GapinitError(
            f"{path}: not a readable HDF5 file ({error}). Delete it and run the stage again."
        ) from None
    with file:
        try:
            _require_whole(file, path, kind)
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise _damaged(path, error) from None
        try:
            yield file
        except FOREIGN as error:
            # A file of ours is as it was written: then this is a defect of gapinit.
            if ours:
                raise
            raise _damaged(path, error) from error


_TRIAL = """
import sys, h5py
with h5py.File(sys.argv[1], "r") as file:
    for value in file.attrs.values():
        pass
    for name in file:
        if isinstance(file.get(name, getlink=True), h5py.HardLink):
            data = file[name]
            if isinstance(data, h5py.Dataset) and data.dtype.kind == "O":
                data[()]
"""
TRIAL_SECONDS = 60.0


def _require_readable(path: Path) -> None:
    """Let another process read a file of unknown origin first, and stop it if that has no end.

    It may fail for any reason that a message here names better; only what would take this process
    along is an error: a loop or a crash inside HDF5's library.
    """
    command = [sys.executable, "-I", "-c", _TRIAL, os.path.abspath(path)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=TRIAL_SECONDS)
        problem = "reading it crashes HDF5's library" if done.returncode < 0 else None
    except subprocess.TimeoutExpired:
        problem = f"HDF5's library came to no end within {TRIAL_SECONDS:g} s"
    if problem is not None:
        raise GapinitError(f"{path}: damaged ({problem}). Delete it and run the stage again.")


FOREIGN = (
    OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, OverflowError,
    MemoryError,
)  # fmt: skip
"""What h5py and numpy raise for a file whose content is not what its kind says."""


def _damaged(path: Path, error: Exception) -> GapinitError:
    said = " ".join(str(error).split())[:300]
    return GapinitError(
        f"{path}: damaged, or not a file that gapinit wrote ({type(error).__name__}: {said}). "
        "Delete it and run the stage again."
    )


def _require_whole(file: h5py.File, path: Path, kind: str) -> None:
    """Refuse a file of another kind or version, an incomplete one, and one that is not plain."""
    import h5py

    found = file.attrs.get("kind")
    if not isinstance(found, str) or found != kind:
        raise GapinitError(f"{path}: expected an HDF5 file of kind '{kind}', found '{found}'")
    version = file.attrs.get("format_version")
    if _shape(version) or version != FORMAT_VERSION:
        raise GapinitError(
            f"{path}: format version {version}, expected {FORMAT_VERSION}. Delete it and run the "
            "stage again."
        )
    complete = file.attrs.get("complete", False)
    if _shape(complete) or not complete:
        raise GapinitError(f"{path}: incomplete. Delete it and run the stage again.")
    if not isinstance(json.loads(file.attrs["inputs"]), dict):
        raise ValueError("'inputs' is no object")
    size = path.stat().st_size
    for name in file:
        # Links out of the file would read any file on this machine as if it were data.
        plain = isinstance(file.get(name, getlink=True), h5py.HardLink)
        if not plain or not isinstance(file[name], h5py.Dataset):
            raise ValueError(f"'{name}' is not an array of this file")
        data = file[name]
        if data.external or data.is_virtual or data.chunks is not None:
            raise ValueError(f"'{name}' is not stored in one piece in this file")
        if data.nbytes > size:
            raise ValueError(f"'{name}' is larger than the file")


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape of an attribute's value; a single one has none."""
    return tuple(getattr(value, "shape", ()) or ())


def hdf5_inputs(file: h5py.File) -> dict[str, Any]:
    """Return what an HDF5 artifact was made from, as recorded when it was written."""
    return json.loads(file.attrs["inputs"])
