"""What a finished workflow says on the terminal: the headline table and where the report is."""

from __future__ import annotations

import csv
from pathlib import Path

from gapinit.artifacts.digests import require_unaltered
from gapinit.errors import GapinitError


def print_summary(results: Path) -> None:
    """Print a configuration's first table, its verdicts and the path of its report."""
    from rich.console import Console

    folder = Path(results)
    tables = sorted((folder / "6_tables").glob("table*.csv"), key=_number)
    if not tables:
        raise GapinitError(f"{folder}/6_tables: no table here; run the workflow first")
    # A terminal's width where there is one; a log's lines must not be cut at 80 characters.
    console = Console(width=None if Console().is_terminal else 120)
    console.print(_table(tables[0]))
    require_unaltered(tables[0])
    verdicts = folder / "claims.csv"
    if verdicts.is_file():
        with verdicts.open(encoding="utf-8", newline="") as file:
            found = [row["verdict"] for row in csv.DictReader(file)]
        counts = ", ".join(f"{found.count(kind)} {kind}" for kind in dict.fromkeys(found))
        if counts:
            console.print(f"Claims of the paper, on this small scale: {counts}")
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _table(path: Path) -> object:
    from rich.table import Table

    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    metric = lines[0]["metric"]
    shown = Table(title=f"{path.stem}: {metric}, published (full scale) and measured (here)")
    for heading in ("", "published", "measured", "95 % interval", "seeds"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for line in lines:
        if line["metric"] != metric:
            continue
        spread = f" ± {float(line['std']):.2f}" if line["std"] else ""
        interval = ""
        if line["interval_low"]:
            interval = f"{float(line['interval_low']):.1f} to {float(line['interval_high']):.1f}"
        shown.add_row(
            line["label"],
            f"{float(line['published']):.2f}" if line["published"] else "",
            f"{float(line['measured']):.2f}{spread}",
            interval,
            line["n_seeds"],
        )
    return shown


def _number(path: Path) -> tuple[int, str]:
    digits = path.stem.removeprefix("table")
    return (int(digits) if digits.isdigit() else 0, path.stem)
