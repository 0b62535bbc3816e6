"""The command line: a command a stage, in the order in which data flows.

Each command is a thin layer over one typed function; the function is imported when its command
runs, so that `gapinit --help` and scoring never pay for torch.
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
    """End the log file with what the command took; the benchmarks read it."""
    if isinstance(sys.stderr, _Tee):
        used = os.times()
        processor = used.user + used.system + used.children_user + used.children_system
        sys.stderr.note(f"took {time.monotonic() - _STARTED:.2f} s, {processor:.2f} s of CPU time")


app = typer.Typer(
    result_callback=_finished,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Gap-Init: at rank 1, which direction should LoRA start from?",
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
        Path | None, typer.Option(help="Also write everything that goes to standard error here.")
    ] = None,
) -> None:
    if log_file is not None:
        with naming(log_file):
            log_file.parent.mkdir(parents=True, exist_ok=True)
            file = log_file.open("w", encoding="utf-8", buffering=1)
        sys.stderr = _Tee(sys.stderr, file)


class _Tee:
    """A standard error that is kept in a file as well."""

    def __init__(self, terminal: TextIO, file: TextIO) -> None:
        self._terminal, self._file = terminal, file

    def write(self, text: str) -> int:
        # A full disk must not keep anyone from reading why.
        with suppress(OSError):
            self._file.write(text)
        return self._terminal.write(text)

    def note(self, line: str) -> None:
        """Write a line to the file alone."""
        with suppress(OSError):
            self._file.write(f"{line}\n")

    def isatty(self) -> bool:
        """No terminal: a bar's control codes would fill the file, and jobs run side by side."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._terminal, name)


def main() -> None:
    """Run the command line; a user's mistake is one message and exit status 1."""
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
