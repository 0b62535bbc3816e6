"""README's headline: the first table, the verdicts and a figure of the reference result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gapinit.artifacts.artifacts import atomic_file
from gapinit.errors import GapinitError
from gapinit.report.sections import interval_text, metric_name, number_text
from gapinit.tables.records import (
    Measurement,
    few_seeds,
    read_claims,
    read_configuration,
    read_table,
)

BEGIN = "<!-- headline: made by `make readme` from results/reference -->"
END = "<!-- end of headline -->"


def write_readme(readme: Path, reference: Path) -> None:
    """Replace the headline between its two markers; the rest of the file does not change."""
    text = updated(Path(readme), reference)
    with atomic_file(Path(readme), recorded=False) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def updated(readme: Path, reference: Path) -> str:
    """Return the text of `readme` with a new headline; a file without markers is an error."""
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise GapinitError(
            f"{readme}: expected these two lines, once and in this order, around the headline:\n"
            f"{BEGIN}\n{END}"
        )
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    link = reference.as_posix()
    if reference.is_absolute() and reference.is_relative_to(readme.resolve().parent):
        link = reference.relative_to(readme.resolve().parent).as_posix()
    return f"{text[:start]}\n\n{headline(reference, link)}\n{text[end:]}"


def headline(reference: Path, link: str) -> str:
    """Return the headline in Markdown: table, verdicts, figure and links below `link`."""
    config = read_configuration(reference / "configuration.json")
    table, figure = config.experiments[0], next(iter(config.figures), None)
    rows = read_table(reference / "6_tables" / f"{table}.csv")
    metrics = list(dict.fromkeys(row.metric for row in rows))
    verdicts = Counter(claim.verdict for claim in read_claims(reference / "claims.csv"))
    counted = (
        f"hold: {verdicts['holds']}, do not hold: {verdicts['does not hold']}, "
        f"undecided: {verdicts['undecided']}"
    )
    parts = [
        f"**{table.replace('table', 'Table ')} of the paper, published and measured here.** The "
        "scales differ: the published numbers come from the paper's own models and data at full "
        f"scale, the measured ones from `{config.backbone}` on `{config.datasets.in_domain}`. "
        "Compare signs and order, not levels.",
        _table(rows, metrics),
        f"Measured is mean ± standard deviation over seeds; 95 % interval over "
        f"{rows[0].interval_over}. {few_seeds(rows)}".rstrip(),
        f"Of the {verdicts.total()} claims in `config/experiments/`, at this scale {counted} "
        f"([each with its numbers]({link}/claims.md)).",
    ]
    if figure:
        parts.append(f"![{figure}: published and measured]({link}/7_figures/{figure}.png)")
    parts.append(
        f"[All tables]({link}/6_tables), [all figures]({link}/7_figures) and the report "
        f"([`{link}/report.html`]({link}/report.html), one page to download and open) of that run."
    )
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Measurement], metrics: Sequence[str]) -> str:
    """Return the rows, with published, measured, difference and interval for the first metric."""
    first, *others = metrics
    header = [f"{metric_name(first)}, percent", "published", "measured", "Δ", "95 % interval", "n"]
    for metric in others:
        header += [f"{metric_name(metric)}, published", f"{metric_name(metric)}, measured"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    by_cell = {(row.row, row.metric): row for row in rows}
    for row in (row for row in rows if row.metric == first):
        cells = [row.label, _number(row.published, row.published_std)]
        cells += [_number(row.measured, row.std), number_text(row.difference, 2, True)]
        cells += [interval_text(row.interval, 1), str(row.n_seeds)]
        for metric in others:
            other = by_cell[row.row, metric]
            cells += [_number(other.published, other.published_std)]
            cells += [_number(other.measured, other.std)]
        lines.append([cell.replace("|", "\\|") for cell in cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(value: float | None, std: float | None) -> str:
    text = number_text(value)
    return text if std is None else f"{text} ± {number_text(std)}"
