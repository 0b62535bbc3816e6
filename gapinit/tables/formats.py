"""One table in two formats: Markdown for the screen, LaTeX (booktabs) for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gapinit.tables.records import Measurement
from gapinit.tables.statistics import Interval

NAMES = {
    "Bleu_1": "BLEU-1",
    "Bleu_2": "BLEU-2",
    "Bleu_3": "BLEU-3",
    "Bleu_4": "BLEU-4",
    "ROUGE_L": "ROUGE-L",
    "VQAv2_accuracy": "VQAv2",
    "OKVQA_accuracy": "OK-VQA",
    "POPE_F1": "POPE F1",
    "POPE_accuracy": "POPE accuracy",
    "POPE_yes_rate": "POPE yes-rate",
    "first_grad_norm": "first gradient norm",
    "gradient_share": "gradient along the gap",
    "trainable_parameters": "trainable parameters",
    "final_loss": "final loss",
    "loss_oscillation": "oscillation of the loss",
    "peak_grad_norm": "peak gradient norm",
    "final_grad_norm": "final gradient norm",
    "final_alignment": "final cosine of B and gap",
    "steps_to_loss": "steps to the target loss",
}
"""Printed names of metrics, where they differ from the names in score files."""

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "_": r"\_",
        "%": r"\%",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        # After a line break, LaTeX takes a bracket for the height of the break.
        "[": "{[}",
        "]": "{]}",
        "±": r"$\pm$",
        "−": "$-$",
        "×": r"$\times$",
        "\N{EN DASH}": "--",
    }
)


@dataclass(frozen=True)
class Caption:
    """The text around a table that says how its numbers were obtained."""

    title: str
    scale: str
    """At which scale measured and published numbers were obtained."""
    reading: str
    note: str = ""


def markdown_table(lines: Sequence[Measurement], metrics: Sequence[str], caption: Caption) -> str:
    """Return a table in GitHub's Markdown, one line a row, three columns a metric.

    `lines` are the lines of the table's CSV, all metrics of a row together.
    """
    header = ["Method"]
    for metric in metrics:
        name = NAMES.get(metric, metric)
        header += [f"{name} published", f"{name} measured", f"{name} versus"]
    rows = [[_markdown_text(text) for text in row] for row in _rows(lines, metrics)]
    notes = [_markdown_text(note) for note in _notes(lines)]
    return (
        f"**{caption.title}** {caption.scale}\n\n"
        + _pipe(header)
        + _pipe(["---", *["---:"] * (len(header) - 1)])
        + "".join(_pipe(row) for row in rows)
        + f"\n{caption.reading}\n"
        + (f"\n{caption.note}\n" if caption.note else "")
        + ("\n" + "".join(f"- {note}\n" for note in notes) if notes else "")
    )


def latex_table(
    lines: Sequence[Measurement], metrics: Sequence[str], caption: Caption, label: str
) -> str:
    r"""Return a `table*` environment; it needs `\usepackage{booktabs}`.

    All text from data is escaped. `lines` as for `markdown_table`.
    """
    columns = 1 + 3 * len(metrics)
    top = ["", *(rf"\multicolumn{{3}}{{c}}{{{latex_escape(NAMES.get(m, m))}}}" for m in metrics)]
    rules = " ".join(rf"\cmidrule(lr){{{2 + 3 * i}-{4 + 3 * i}}}" for i in range(len(metrics)))
    header = ["Method", *["published", "measured", "versus"] * len(metrics)]
    body = [" & ".join(map(latex_escape, row)) + r" \\" for row in _rows(lines, metrics)]
    notes = " ".join(f"{note}." for note in _notes(lines))
    text = " ".join(part for part in (caption.reading, caption.note, notes) if part)
    return "\n".join(
        [
            r"\begin{table*}[t]",
            r"\centering",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}",
            rf"\caption{{\textbf{{{latex_escape(caption.title)}}} {latex_escape(caption.scale)}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
            r"\toprule",
            " & ".join(top) + r" \\",
            rules,
            " & ".join(header) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\par\smallskip",
            rf"\parbox{{\linewidth}}{{\scriptsize {latex_escape(text)}}}",
            r"\end{table*}",
            "",
        ]
    )


def latex_escape(text: str) -> str:
    """Escape every character that has a special meaning in LaTeX."""
    return text.translate(_LATEX)


def _rows(lines: Sequence[Measurement], metrics: Sequence[str]) -> list[list[str]]:
    """Return each row as text: its label, then three cells for each metric."""
    cells = {(line.row, line.metric): line for line in lines}
    labels = {line.row: line.label for line in lines}
    return [
        [label, *(text for metric in metrics for text in _cells(cells[row, metric]))]
        for row, label in labels.items()
    ]


def _cells(line: Measurement) -> list[str]:
    """Return a line as text: published, measured, difference to the reference row."""
    versus = ""
    if line.vs_reference is not None:
        versus = f"{line.vs_reference:+.2f}".replace("-", "−")
        versus += _interval(line.vs_reference_interval)
    if line.p_holm is not None:
        versus += ", p < 0.001" if line.p_holm < 0.001 else f", p = {line.p_holm:.3f}"
    return [
        _number(line.published, line.published_std),
        _number(line.measured, line.std) + _interval(line.interval),
        versus,
    ]


def _number(value: float | None, std: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if std is None else f"{value:.2f} ± {std:.2f}"


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f" [{interval.low:.1f}, {interval.high:.1f}]".replace("-", "−")


def _notes(lines: Sequence[Measurement]) -> list[str]:
    """Return the notes of the lines, each with its row and metric."""
    return [
        f"{line.label}, {NAMES.get(line.metric, line.metric)}: {line.note}"
        for line in lines
        if line.note
    ]


def _markdown_text(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


def _pipe(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"
