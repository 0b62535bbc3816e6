"""Error messages for a full disk, a read-only folder and missing memory."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gapinit.errors import GapinitError

_STORAGE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
}  # fmt: skip
_ADVICE = (
    "Make room there, make it writable, or choose another folder, and run the same command again."
)
# Libraries in C and Rust give the error number only in the message.
_NUMBER = re.compile(r"errno = (\d+)|os error (\d+)|\[Errno (\d+)\]")
_NO_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")


def storage_problem(error: BaseException) -> str | None:
    """Return the operating system's message for a failed read or write; None for other errors."""
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        if number is None and (found := _NUMBER.search(str(seen))):
            number = int(next(filter(None, found.groups())))
        if number in _STORAGE:
            return os.strerror(number)
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn storage errors, such as a full disk, into a GapinitError that names the file."""
    try:
        yield
    except GapinitError:
        raise
    except Exception as error:
        problem = storage_problem(error)
        if problem is None:
            raise
        raise GapinitError(f"{path}: cannot be written ({problem}). {_ADVICE}") from None


def environment_problem(error: BaseException) -> str | None:
    """Return the message for a full disk, missing rights or missing memory; None for a defect."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or any(words in said for words in _NO_MEMORY):
        return (
            f"not enough memory ({said[:300]}). Give this job more, or lower the batch size "
            "(training.batch_size, decoding.batch_size), and run the same command again."
        )
    problem = storage_problem(error)
    if problem is None:
        return None
    named = getattr(error, "filename", None) or "a file"
    return f"{named}: cannot be read or written ({problem}). {_ADVICE}"
