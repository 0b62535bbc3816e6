"""What a finished workflow prints: its first table, the verdicts, the path of the report."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from gapinit.tables.records import read_claims, read_configuration, read_table

if TYPE_CHECKING:
    from rich.table import Table


def print_summary(results: Path) -> None:
    """Print a configuration's first table, its verdicts and the path of its report."""
    from rich.console import Console

    folder = Path(results)
    first = read_configuration(folder / "configuration.json").experiments[0]
    # A terminal's width where there is one; a log's lines must not be cut at 80 characters.
    console = Console(width=None if Console().is_terminal else 120)
    console.print(_table(folder / "6_tables" / f"{first}.csv"))
    verdicts = Counter(claim.verdict for claim in read_claims(folder / "claims.csv"))
    if verdicts:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        console.print(f"Claims of the paper, on this small scale: {counts}")
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _table(path: Path) -> Table:
    from rich.table import Table

    lines = read_table(path)
    metric = lines[0].metric
    shown = Table(title=f"{path.stem}: {metric}, published (full scale) and measured (here)")
    for heading in ("", "published", "measured", "95 % interval", "seeds"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for line in lines:
        if line.metric == metric:
            interval = line.interval
            shown.add_row(
                line.label,
                "" if line.published is None else f"{line.published:.2f}",
                f"{line.measured:.2f}" + ("" if line.std is None else f" ± {line.std:.2f}"),
                f"{interval.low:.1f} to {interval.high:.1f}" if interval else "",
                str(line.n_seeds),
            )
    return shown
