"""Artifacts, the files that stages exchange: written atomically, verified before they are read.

An artifact is written under a temporary name in its own folder, flushed to disk and renamed, so a
killed job leaves no partial file under a final name. An HDF5 artifact stores its kind, format
version, inputs, package versions and a completeness mark.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapinit.artifacts.digests import record, record_folder, require_unaltered
from gapinit.artifacts.digests import sha256 as sha256  # re-exported
from gapinit.artifacts.storage_errors import naming
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    import h5py

FORMAT_VERSION = 1
MAX_JSON = 1 << 31
"""Bytes. The benchmarks' largest annotation file (VQAv2) has 0.4 GB."""
RECORDED_PACKAGES = ("gapinit", "torch", "transformers", "peft", "numpy", "h5py", "tokenizers")


@contextmanager
def atomic_file(path: Path, *, recorded: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    `recorded`: also write its checksum; false for a file that people edit.
    """
    path = Path(path)
    with naming(path):
        temporary = _temporary(path)
        try:
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            if recorded:
                record(path, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` if the block succeeds.

    An existing folder is replaced as a whole.
    """
    path = Path(path)
    with naming(path):
        temporary = _temporary(path)
        temporary.mkdir()
        try:
            yield temporary
            record_folder(temporary)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """Return this process's temporary name for `path`; delete temporary files of killed writers.

    A temporary name ends in its writer's process number. Snakemake's lock keeps two machines from
    writing one file at a time, so a number that is unused on this machine means a dead writer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{escape(path.name)}.*.partial"):
        number = left.name.removesuffix(".partial").rpartition(".")[2]
        if not number.isdigit() or (int(number) != os.getpid() and _runs(int(number))):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_json(path: Path, content: Any, *, recorded: bool = True) -> None:
    """Write `content` atomically as UTF-8 JSON; raise ValueError for NaN, which JSON lacks.

    `recorded`: see `atomic_file`.
    """
    with atomic_file(path, recorded=recorded) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_whole(path: Path) -> bytes:
    """Return a file's bytes.

    Raises GapinitError for a missing, unreadable or too large file, and for a wrong checksum.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_JSON:
            raise GapinitError(
                f"{path}: {path.stat().st_size} bytes, expected at most {MAX_JSON}: reading a "
                "larger text file may exhaust the memory. Split it."
            )
        content = path.read_bytes()
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such file") from None
    except OSError as error:
        raise GapinitError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise GapinitError(f"{str(path)!r}: not a file name ({error})") from None
    require_unaltered(path, content)
    return content


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises GapinitError that names the file if it is missing, unreadable or malformed, or has a
    wrong checksum. NaN and a repeated key count as malformed.
    """
    content = read_whole(path)
    try:
        return json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_each_key_once,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise GapinitError(f"{path}: not readable JSON (nested too deeply)") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise GapinitError(f"{path}: not valid JSON ({error})") from None
    except ValueError as error:  # too many digits for Python, NaN, a repeated key
        raise GapinitError(f"{path}: not readable JSON ({error})") from None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"repeated key {twice!a} in an object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def digest(content: Any) -> str:
    """Return the SHA-256 of a JSON-like value, independent of the order of its keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def package_versions(packages: Sequence[str] = RECORDED_PACKAGES) -> dict[str, str]:
    """Return the installed versions of the packages that affect an artifact's numbers."""
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

    `kind` names its content ("states", "gap", "trunk", "features"). `inputs` (checksums, sizes,
    options) and the package versions are stored as attributes.
    """
    import h5py

    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        try:
            file.attrs["kind"] = kind
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["inputs"] = json.dumps(dict(inputs), sort_keys=True, default=str)
            file.attrs["packages"] = json.dumps(package_versions(), sort_keys=True)
            yield file
            file.attrs["complete"] = True
            file.flush()
        except BaseException:
            # HDF5 prints tracebacks if the disk is too full to close a file, so free the space.
            os.truncate(temporary, 0)
            raise


@contextmanager
def open_hdf5(path: Path, kind: str) -> Iterator[h5py.File]:
    """Open a complete HDF5 artifact of the given kind for reading; raise GapinitError otherwise.

    The checksum is verified first: the HDF5 library may crash or hang on a damaged file. A file
    without a recorded checksum (as in Snakemake's between-workflow cache) is not verified.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise GapinitError(f"{path}: no such file (expected an HDF5 file of kind '{kind}')")
    require_unaltered(path)
    try:
        file = h5py.File(path, "r")
        _require_whole(file, path, kind)
    except (OSError, RuntimeError, KeyError) as error:
        raise GapinitError(
            f"{path}: not a readable HDF5 file ({error}). Delete it and run the stage again."
        ) from None
    with file:
        yield file


def _require_whole(file: h5py.File, path: Path, kind: str) -> None:
    """Raise GapinitError for another kind or version, an incomplete file, or links in it."""
    import h5py

    expected = {"kind": kind, "format_version": FORMAT_VERSION, "complete": True}
    for name, value in expected.items():
        found = file.attrs.get(name)
        if str(found) != str(value):
            raise GapinitError(
                f"{path}: expected an HDF5 file of {name.replace('_', ' ')} '{value}', found "
                f"'{found}'. Delete it and run the stage again."
            )
    size = path.stat().st_size
    for name in file:
        # A link out of the file could read any file on this machine as data.
        plain = isinstance(file.get(name, getlink=True), h5py.HardLink)
        data = file[name] if plain else None
        if (
            not isinstance(data, h5py.Dataset)
            or data.external
            or data.is_virtual
            or data.chunks is not None
            or data.nbytes > size
        ):
            raise GapinitError(
                f"{path}: '{name}' is not a contiguous array stored in this file. Delete the file "
                "and run the stage again."
            )


def hdf5_inputs(file: h5py.File) -> dict[str, Any]:
    """Return the recorded inputs of an HDF5 artifact."""
    return json.loads(file.attrs["inputs"])
