"""Progress on standard error and tables on standard output.

A terminal shows bars and frames; a pipe or a log gets plain lines and columns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 15.0


def track(items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items` and show the progress and the remaining time."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as rich_track

        console = Console(stderr=True)
        yield from rich_track(items, description=title, total=total, console=console)
        return
    advance = _lines(title, total, str)
    for place, item in enumerate(items):
        if place:
            advance(1)
        yield item


@contextmanager
def track_bytes(title: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield a function that adds received bytes; show size, rate and remaining time.

    `done`: bytes of an earlier attempt, which count as progress but not towards the rate.
    """
    if not sys.stderr.isatty():
        yield _lines(title, total, show_bytes, done)
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


def _lines(
    title: str, total: int | None, show: Callable[[int], str], done: int = 0
) -> Callable[[int], None]:
    """Return a function that counts and prints the progress every 15 s."""
    started = last = time.monotonic()
    came = 0

    def advance(count: int) -> None:
        nonlocal came, last
        came += count
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        line = f"{title}: {show(done + came)}"
        if total:
            line += f" of {show(total)}"
        if show is show_bytes:
            line += f", {show_bytes(came / (now - started))}/s"
        if total and came:
            seconds = (now - started) / came * (total - done - came)
            line += f", about {seconds:.0f} s left"
        print(line, file=sys.stderr, flush=True)

    return advance


def show_bytes(count: float) -> str:
    """Return a number of bytes with its unit: 13.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; an empty title and a row of empty headings are left out."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*columns, title=title, title_justify="left", show_header=any(columns))
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    # No frames, at least two spaces between columns, one row per line.
    if title:
        print(f"\n{title}")
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows) if any(columns) else rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"{'  ' if title else ''}{'  '.join(cells).rstrip()}")
