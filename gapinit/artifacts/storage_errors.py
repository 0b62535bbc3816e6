"""What the system says when a file cannot be written, or memory is short, in words for people."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gapinit.errors import GapinitError

_FREE = "Free some space (or raise the quota) and run the same command again."
_ADVICE = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f) and run the same command again.",
    errno.EROFS: "Make the file system writable, or choose another folder for results.",
    errno.EACCES: "Give yourself the right to write there, or choose another folder for results.",
    errno.EPERM: "Give yourself the right to write there, or choose another folder for results.",
    errno.EIO: "The disk reports an error: check it, and run the same command again.",
    errno.ENAMETOOLONG: "Choose a shorter folder for results.",
    errno.ENOTDIR: "A file stands where a folder is needed: move it away.",
    errno.EISDIR: "A folder stands where a file is needed: move it away.",
    errno.ELOOP: "A link leads to itself: remove it.",
}
# Libraries in C and Rust keep the number in their text only.
_NUMBER = re.compile(r"errno = (\d+)|os error (\d+)|\[Errno (\d+)\]")
_NO_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")


def storage_problem(error: BaseException) -> tuple[str, str] | None:
    """Return what kept a file from being written and the way out; None for any other error."""
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        if number is None and (found := _NUMBER.search(str(seen))):
            number = int(next(filter(None, found.groups())))
        if number in _ADVICE:
            return os.strerror(number), _ADVICE[number]
        seen = seen.__cause__ or seen.__context__
    return None


def memory_problem(error: BaseException) -> bool:
    """Return whether an error says that there was no memory left."""
    text = str(error)
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and their like into an error that names the file."""
    try:
        yield
    except GapinitError:
        raise
    except Exception as error:
        problem = storage_problem(error)
        if problem is None:
            raise
        said, advice = problem
        raise GapinitError(f"{path}: cannot be written ({said}). {advice}") from None


def environment_problem(error: BaseException) -> str | None:
    """Return what a full disk, missing rights or missing memory is told as; None for a defect."""
    if memory_problem(error):
        said = " ".join(str(error).split()) or type(error).__name__
        return (
            f"not enough memory ({said[:300]}). Give this job more, or lower the batch size "
            "(training.batch_size, decoding.batch_size), and run the same command again."
        )
    problem = storage_problem(error)
    if problem is None:
        return None
    named = getattr(error, "filename", None)
    return f"{named or 'a file'}: cannot be read or written ({problem[0]}). {problem[1]}"
