"""The command line: one command per stage, in the order in which data flows.

Each command calls one typed function and imports it when it runs, so that `gapinit --help` and
scoring do not import torch.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from gapinit.artifacts.storage_errors import environment_problem, naming
from gapinit.cli import cluster, data, evaluate, methods, rehearse, results, stages
from gapinit.errors import GapinitError

_STARTED = time.monotonic()


def _finished(*_: Any, **__: Any) -> None:
    """Write the command's wall and CPU time to the log file, where the benchmarks read it."""
    if isinstance(sys.stderr, _Tee):
        used = os.times()
        processor = used.user + used.system + used.children_user + used.children_system
        sys.stderr.note(f"took {time.monotonic() - _STARTED:.2f} s, {processor:.2f} s of CPU time")


app = typer.Typer(
    result_callback=_finished,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Gap-Init: rank-1 LoRA initialised along the modality gap.",
)
app.add_typer(data.app, name="data")
app.add_typer(stages.app)
app.add_typer(evaluate.app)
app.add_typer(evaluate.score_app, name="score")
app.add_typer(results.app)
app.add_typer(methods.app)
app.add_typer(rehearse.app)
app.add_typer(cluster.app, name="cluster")


@app.callback()
def _options(
    log_file: Annotated[
        Path | None, typer.Option(help="File for a copy of standard error.")
    ] = None,
) -> None:
    if log_file is not None:
        with naming(log_file):
            log_file.parent.mkdir(parents=True, exist_ok=True)
            file = log_file.open("w", encoding="utf-8", buffering=1)
        sys.stderr = _Tee(sys.stderr, file)


class _Tee:
    """Standard error with a copy in a file."""

    def __init__(self, terminal: TextIO, file: TextIO) -> None:
        self._terminal, self._file = terminal, file

    def write(self, text: str) -> int:
        # With a full disk, the error message must still reach the terminal.
        with suppress(OSError):
            self._file.write(text)
        return self._terminal.write(text)

    def note(self, line: str) -> None:
        """Write a line to the file only."""
        with suppress(OSError):
            self._file.write(f"{line}\n")

    def isatty(self) -> bool:
        """Return False: a progress bar's control codes would fill the file."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._terminal, name)


def main() -> None:
    """Run the command line; print a user's mistake as one message and exit with status 1."""
    try:
        app()
    except GapinitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (OSError, MemoryError, RuntimeError) as error:
        message = environment_problem(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
