"""Compare each claim of a paper with the measured numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gapinit.artifacts.artifacts import atomic_file
from gapinit.config.configuration import Config
from gapinit.config.experiments import Claim, load_experiment, table_rows
from gapinit.tables.records import ClaimResult, Verdict, write_records
from gapinit.tables.scores import RowScores, ScoreFolder, paired_differences
from gapinit.tables.statistics import bootstrap_interval, mean_and_std, std_ratio_interval


def check_claims(
    experiments: Sequence[Path], config: Config, evaluations: Path, runs: Path, output: Path
) -> None:
    """Write a verdict on every claim of the experiments, as CSV with a Markdown version beside it.

    A claim `metric(better) >= metric(worse) - margin` holds if the whole 95 % interval of their
    difference, on the same seeds and images, lies above -margin; it does not hold if the whole
    interval lies below; otherwise these runs do not decide it. Of `sd(...)` the column `difference`
    is the ratio of the standard deviations over seeds, better / worse, and the value to clear is 1.
    Verdicts are not corrected for the number of claims.

    Args:
        experiments: the experiment files, in the order of the output.
        config: the workflow's configuration, which turns the rows into runs.
        evaluations: folder of score files, `<run.path>/<dataset>.scores.json`, in percent.
        runs: folder of run records, `<run.path>/run.json`, and step logs.
        output: `claims.csv`.

    Raises:
        GapinitError: a score file is missing, damaged or lacks a metric.
    """
    folder = ScoreFolder(evaluations, runs)
    lines: list[ClaimResult] = []
    for path in experiments:
        table = Path(path).stem
        experiment = load_experiment(path)
        rows = table_rows(experiment, config, str(path))
        for claim in experiment.claims:
            origin = f"claim '{claim.claim}' of table '{table}'"
            compared = claim.rows(rows, str(path))
            metric = claim.statement.metric
            better, worse = folder.cells(compared, experiment, metric, config, origin)
            lines.append(_result(table, claim, better, worse))
    write_records(output, ClaimResult, lines)
    with atomic_file(Path(output).with_suffix(".md")) as temporary:
        temporary.write_text(claims_markdown(lines), encoding="utf-8")


def claims_markdown(lines: Sequence[ClaimResult]) -> str:
    """Return the verdicts as a table in GitHub's Markdown."""
    header = "| Table | Claim | As an expression | Measured | 95 % interval | n | Verdict |\n"
    text = header + "|" + " --- |" * 7 + "\n"
    for line in lines:
        value = "" if line.difference is None else f"{line.difference:.2f}"
        if value and line.statistic == "std":
            value = f"ratio {value}"
        elif value:
            value = f"{line.better_value:.2f} against {line.worse_value:.2f}, {value}"
        interval = "" if line.low is None else f"{line.low:.2f} to {line.high:.2f}"
        cells = (line.table, line.text, f"`{line.claim}`", value, interval, line.n)
        text += f"| {' | '.join(cells)} | **{line.verdict}** |\n"
    return text


def verdict(low: float | None, high: float | None, threshold: float, above: bool) -> Verdict:
    """Judge by an interval the claim that a value lies above (or below) a threshold."""
    if low is None or high is None or low <= threshold <= high:
        return "undecided"
    return "holds" if (low > threshold) == above else "does not hold"


def _result(table: str, claim: Claim, better: RowScores, worse: RowScores) -> ClaimResult:
    """Return a claim with the two numbers, their difference or ratio, and the verdict."""
    statement = claim.statement
    numbers = [row.corpus(statement.metric) for row in (better, worse)]
    value: float | None
    if statement.statistic == "std":
        value, interval = std_ratio_interval(*numbers) or (None, None)
        threshold, above, pick = 1.0, False, 1
        seeds = min(len(better.scores), len(worse.scores))
    else:
        differences = paired_differences(better, worse, statement.metric)
        value = float(differences.mean())
        interval = bootstrap_interval(differences, samples=better.samples)
        threshold, above, pick = -statement.margin, True, 0
        seeds = differences.shape[0]
    better_value, worse_value = (mean_and_std(row)[pick] for row in numbers)
    low, high = (interval.low, interval.high) if interval else (None, None)
    samples = f", {better.measured_on}" if better.measured_on else ""
    return ClaimResult(
        table=table,
        text=claim.text,
        claim=claim.claim,
        question=claim.question or "",
        metric=statement.metric,
        statistic=statement.statistic,
        better=better.row.id,
        worse=worse.row.id,
        margin=statement.margin,
        better_value=better_value,
        worse_value=worse_value,
        difference=value,
        low=low,
        high=high,
        interval_over=interval.over if interval else "",
        verdict=verdict(low, high, threshold, above),
        n=f"{seeds} seed{'s' * (seeds != 1)}{samples}",
    )
