"""Run one call in a process of its own, with limits, so that its end spoils nothing else."""

from __future__ import annotations

import os
import resource
import traceback
from collections.abc import Callable
from typing import Any

from gapinit.artifacts.storage_errors import environment_problem
from gapinit.errors import GapinitError


def isolated(call: Callable[[], Any], *, memory: int | None = None) -> str:
    """Return the error message with which `call` ends in a forked child; "": it succeeded.

    `memory`: how many bytes it may allocate beyond those of this process. Anything but a message
    of gapinit's own (a traceback, a signal) fails the test.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, _message(call, memory).encode()[:60_000])
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read, encoding="utf-8", errors="replace") as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the process died: {os.waitstatus_to_exitcode(status)}"
    assert "Traceback" not in said, said
    return said


def _message(call: Callable[[], Any], memory: int | None) -> str:
    try:
        if memory is not None:
            with open("/proc/self/statm", encoding="ascii") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        call()
    except GapinitError as error:
        return str(error)
    except Exception as error:  # as the command line tells them
        return environment_problem(error) or traceback.format_exc()
    return ""
