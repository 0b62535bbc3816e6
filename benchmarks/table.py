"""Redraw `README.md`'s table and `benchmarks.svg` from the JSON files in `results/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, number
from gapinit.artifacts.artifacts import atomic_file, read_json
from gapinit.errors import GapinitError

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
MET, MISSED, NEUTRAL = "#2a9d8f", "#d1495b", "#808080"


def read_results(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the existing results in the order of the programs."""
    paths = [folder / f"{name}.json" for name in names]
    return [read_json(path) for path in paths if path.is_file()]


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """Return the table of all targets, and each machine that measured them."""
    lines = [
        "| work | peer | target | measured (quartiles, turns) | | measured on |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        for row in result["targets"]:
            lines.append(_line(row))
    lines += ["", *_machines(results)]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    measured, unit = row["measured"], row["unit"]
    value, low, high = (
        number(measured[name], unit) for name in ("median", "quartile_1", "quartile_3")
    )
    spread = f"{low} to {high}, {measured['n']}" if measured["n"] > 1 else "once"
    verdict = "met" if row["met"] else "**not met**"
    return (
        f"| {row['work']} | {row['peer']} | {row['bound']} {number(row['target'], unit)} | "
        f"{value} ({spread}) | {verdict} | {row['scale'] or 'the real thing'} |"
    )


def _machines(results: Sequence[dict[str, Any]]) -> list[str]:
    found: dict[str, list[str]] = {}
    for result in results:
        at = result["environment"]
        machine = (
            f"{at['processor']}, {at['cores']} cores, {at['memory_gb']} GB, Python {at['python']}, "
            f"torch {at['packages'].get('torch')}"
        )
        found.setdefault(machine, []).append(f"`{result['name']}` (load {at['load_at_the_end']})")
    return [f"{machine}: {', '.join(names)}." for machine, names in found.items()]


def redraw_table(readme: Path, results: Sequence[dict[str, Any]]) -> None:
    """Replace the table between the markers of a Markdown file."""
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise GapinitError(f"{readme}: expected the markers {BEGIN} and {END}")
    with atomic_file(readme, recorded=False) as temporary:
        content = f"{before}{BEGIN}\n\n{markdown(results)}\n\n{END}{after}"
        temporary.write_text(content, encoding="utf-8")


def gain(row: dict[str, Any]) -> float:
    """Return by which factor a row is better than its target; 1: just met."""
    measured, target = float(row["measured"]["median"]), float(row["target"])
    return measured / target if row["bound"] == "at least" else target / measured


def draw(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Draw the measured values relative to their targets as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    rows = [row for result in results for row in result["targets"]]
    if not rows:
        return
    # One grey for all text and lines, readable on white and on black.
    options: Any = {"text.color": NEUTRAL, "axes.edgecolor": NEUTRAL, "svg.hashsalt": "gapinit"}
    options |= {"xtick.color": NEUTRAL, "ytick.color": NEUTRAL, "axes.labelcolor": NEUTRAL}
    with pyplot.rc_context(options):
        figure, axes = pyplot.subplots(figsize=(9, 0.6 + 0.5 * len(rows)), layout="constrained")
        values = [gain(row) for row in rows]
        axes.barh(range(len(rows)), values, color=[MET if row["met"] else MISSED for row in rows])
        for place, (row, value) in enumerate(zip(rows, values, strict=True)):
            shown = number(row["measured"]["median"], row["unit"])
            axes.annotate(f" {shown}", (value, place), va="center", fontsize=8)
        axes.axvline(1.0, color=NEUTRAL, linewidth=1)
        axes.set_yticks(range(len(rows)), [row["work"] for row in rows], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("measured / target (1: just met; to the right: better)")
        axes.spines[["top", "right"]].set_visible(False)
        with atomic_file(path, recorded=False) as temporary:
            figure.savefig(temporary, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)


def redraw(names: Sequence[str], folder: Path = FOLDER) -> None:
    """Redraw table and figure from the files in `results/`."""
    results = read_results(folder / RESULTS.name, names)
    redraw_table(folder / "README.md", results)
    draw(folder / "benchmarks.svg", results)
