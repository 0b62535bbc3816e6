"""Run one call in a process of its own: what hangs, dies or swallows memory spoils nothing else."""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gapinit.artifacts.storage_errors import environment_problem
from gapinit.errors import GapinitError

SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """How a call ended: `result`, `error` (a message for people), `defect`, `hang` or `death`."""

    kind: str
    text: str = ""
    value: Any = None


def isolated(
    call: Callable[[], Any], *, seconds: float = SECONDS, memory: int | None = None
) -> Outcome:
    """Return how `call` ends in a forked child, which is killed after `seconds`.

    `memory`: how many bytes it may allocate beyond what this process has.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _in_child(call, write, memory)
    os.close(write)
    content, end = b"", time.monotonic() + seconds
    try:
        while True:
            ready, _, _ = select.select([read], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                os.kill(child, signal.SIGKILL)
                return Outcome("hang", f"no end within {seconds:g} s")
            block = os.read(read, 1 << 16)
            if not block:
                break
            content += block
    finally:
        os.close(read)
        _, status = os.waitpid(child, 0)
    if not content:
        return Outcome("death", f"the process ended with {os.waitstatus_to_exitcode(status)}")
    return Outcome(*pickle.loads(content))  # from our own child, over our own pipe


def _in_child(call: Callable[[], Any], write: int, memory: int | None) -> None:
    """Run the call, send its outcome, and leave without any clean-up of the parent's."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        if memory is not None:
            with open("/proc/self/statm", encoding="ascii") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        outcome: tuple[str, str, Any] = ("result", "", call())
    except GapinitError as error:
        outcome = ("error", str(error), None)
    except BaseException as error:
        told = environment_problem(error) if isinstance(error, Exception) else None
        outcome = ("error", told, None) if told else ("defect", traceback.format_exc(), None)
    try:
        content = pickle.dumps(outcome)
    except Exception:
        content = pickle.dumps(("defect", traceback.format_exc(), None))
    while content:
        content = content[os.write(write, content) :]
    os._exit(0)
