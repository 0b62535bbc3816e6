"""Hold each claim of a paper against the measured numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gapinit.config import Config
from gapinit.runs import Claim, load_experiment, table_rows
from gapinit.scores import RowScores, ScoreFolder, paired_differences
from gapinit.statistics import ConfidenceInterval, bootstrap_interval, std_ratio_interval
from gapinit.tables import write_csv

Verdict = Literal["holds", "does not hold", "undecided"]

CLAIM_COLUMNS = (
    "table",
    "text",
    "metric",
    "statistic",
    "better",
    "worse",
    "margin",
    "difference",
    "low",
    "high",
    "interval_over",
    "verdict",
    "n",
)


def check_claims(
    experiments: Sequence[Path], config: Config, evaluations: Path, runs: Path, output: Path
) -> None:
    """Write a verdict on every claim of the experiments, as CSV.

    A claim that `better` scores above `worse` by no less than -margin holds if the whole 95 %
    interval of their difference, on the same seeds and images, lies above -margin; it does not
    hold if the whole interval lies below; otherwise these runs do not decide it. For
    `statistic: std` the column `difference` is the ratio of the standard deviations over seeds,
    better / worse, and the value to clear is 1. Claims are not corrected for their number: each
    verdict stands for itself.

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
    lines: list[dict[str, Any]] = []
    for path in experiments:
        table = Path(path).stem
        experiment = load_experiment(path)
        rows = {row.id: row for row in table_rows(experiment, config, str(path))}
        for claim in experiment.claims:
            origin = f"a claim of table '{table}'"
            compared = [rows[claim.better], rows[claim.worse]]
            better, worse = folder.cells(compared, experiment, claim.metric, config, origin)
            lines.append({"table": table, **claim.model_dump(), **_test(claim, better, worse)})
    write_csv(output, CLAIM_COLUMNS, lines)


def verdict(low: float | None, high: float | None, threshold: float, above: bool) -> Verdict:
    """Return what an interval says of a claim that a value lies above (or below) a threshold."""
    if low is None or high is None or low <= threshold <= high:
        return "undecided"
    return "holds" if (low > threshold) == above else "does not hold"


def _test(claim: Claim, better: RowScores, worse: RowScores) -> Mapping[str, Any]:
    """Return value, interval, verdict and sample sizes of one claim."""
    interval: ConfidenceInterval | None
    value: float | None
    if claim.statistic == "std":
        ratio = std_ratio_interval(better.corpus(claim.metric), worse.corpus(claim.metric))
        value, interval = ratio if ratio is not None else (None, None)
        threshold, above = 1.0, False
        seeds = min(len(better.scores), len(worse.scores))
    else:
        differences = paired_differences(better, worse, claim.metric)
        value = float(differences.mean())
        interval = bootstrap_interval(differences, samples=better.samples)
        threshold, above = -claim.margin, True
        seeds = differences.shape[0]
    low, high = (interval.low, interval.high) if interval else (None, None)
    samples = f", {better.measured_on}" if better.measured_on else ""
    return {
        "difference": value,
        "low": low,
        "high": high,
        "interval_over": interval.over if interval else "",
        "verdict": verdict(low, high, threshold, above),
        "n": f"{seeds} seed{'s' * (seeds != 1)}{samples}",
    }
