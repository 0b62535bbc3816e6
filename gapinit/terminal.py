"""Tables on standard output: drawn on a terminal, plain columns into a pipe or a log."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a title; columns without any heading have no row of headings."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*columns, title=title, title_justify="left", show_header=any(columns))
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    # Columns apart by two spaces at least, without frames, one row a line.
    print(f"\n{title}")
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows) if any(columns) else rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"  {'  '.join(cells).rstrip()}")


def print_facts(title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one a line."""
    print_table(title, ("", ""), facts)
