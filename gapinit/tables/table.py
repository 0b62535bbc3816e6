"""Tables: measured beside published, with uncertainty, and one tidy table of every run.

`gapinit score` writes one score file a run and dataset; experiments assign runs to rows;
`config/published/` holds the published numbers. No torch here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import atomic_file
from gapinit.config.configuration import Config
from gapinit.config.experiments import Experiment, load_experiment, table_rows
from gapinit.config.runs import Run, TableRow
from gapinit.errors import GapinitError
from gapinit.tables.formats import Caption, latex_table, markdown_table
from gapinit.tables.measures import read_process, read_run_record
from gapinit.tables.published import PublishedNumber, elsewhere, find, read_paper
from gapinit.tables.records import Measurement, RunResult, few_seeds, write_csv, write_records
from gapinit.tables.scores import RowScores, ScoreFolder, paired_differences
from gapinit.tables.statistics import bootstrap_interval, holm, mean_and_std, permutation_p_value

RUN_MEASURES = ("trainable_parameters", "first_grad_norm", "final_loss", "noise_cosine")
"""The columns of the tidy table that come from `run.json`."""
COSTS = ("seconds", "peak_memory_mb", "threads")
"""The columns of `costs.csv`, from `process.json`: they differ each time a run is trained."""
TRAINING = "training"
"""The dataset that the tidy table names for a run that is scored on none."""


def make_table(
    experiment: Path,
    config: Config,
    evaluations: Path,
    runs: Path,
    published: Path,
    output: Path,
) -> None:
    """Write one table of a paper as CSV, with a Markdown and a LaTeX version beside it.

    A cell is mean and sample standard deviation over seeds, with a 95 % bootstrap interval over
    seeds and images (`gapinit.tables.statistics`). Each row is compared with the reference row on
    the same seeds and images: difference, interval, paired permutation p-value, and that p-value
    corrected by Holm's method over the rows of the table, for each metric on its own.

    Args:
        experiment: `config/experiments/<table>.yaml`; its stem names the table.
        config: the workflow's configuration, which turns the rows into runs.
        evaluations: folder of score files, `<run.path>/<dataset>.scores.json`, in percent.
        runs: folder of run records, `<run.path>/run.json`; each run's is checked to be its own.
        published: folder of the published numbers, `config/published`.
        output: `<table>.csv`; `.md` and `.tex` are written beside it.

    Raises:
        GapinitError: a file is missing, damaged or of other runs; a name is unknown.
    """
    table = Path(experiment).stem
    loaded, origin = load_experiment(experiment), f"table '{table}'"
    rows = table_rows(loaded, config, str(experiment))
    numbers = read_paper(published, loaded.paper)
    printed = {
        row.id: _published(numbers, loaded, row.published, f"{experiment}: row '{row.id}'")
        for row in rows
    }
    folder = ScoreFolder(evaluations, runs)
    scored = {
        metric: folder.cells(rows, loaded, metric, config, origin) for metric in loaded.metrics
    }
    for run in dict.fromkeys(run for row in rows for run in row.runs):
        read_run_record(runs, run, origin)

    lines = _lines(table, loaded, scored, printed, numbers)
    caption = Caption(
        title=f"{loaded.title} ({loaded.place} of the paper).",
        scale=(
            f"Measured: {_backbones(rows)}, fine-tuned on "
            f"{config.datasets.of(loaded.train)}, {_scored_on(scored, loaded, config)}. "
            "Published: as the paper prints it, with its own backbones and datasets at full scale."
        ),
        reading=_reading(rows, lines),
        note=loaded.note,
    )
    write_records(output, Measurement, lines)
    texts = {
        ".md": markdown_table(lines, loaded.metrics, caption),
        ".tex": latex_table(lines, loaded.metrics, caption, f"tab:{table}"),
    }
    for suffix, text in texts.items():
        with atomic_file(Path(output).with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _backbones(rows: Sequence[TableRow]) -> str:
    """Name the backbones of a table's runs."""
    names = list(dict.fromkeys(run.backbone for row in rows for run in row.runs))
    return f"backbone{'s' * (len(names) > 1)} {' and '.join(names)}"


def _scored_on(
    scored: Mapping[str, Sequence[RowScores]], experiment: Experiment, config: Config
) -> str:
    """Return how many samples of which datasets a table was scored on."""
    parts = dict.fromkeys(
        f"{rows[0].measured_on} of {config.datasets.of(experiment.part(metric))}"
        for metric, rows in scored.items()
        if rows[0].measured_on
    )
    return f"scored on {', '.join(parts)}" if parts else "measured in training"


def tidy_runs(
    experiments: Sequence[Path], config: Config, evaluations: Path, runs: Path, output: Path
) -> None:
    """Write one line for each run, dataset that it was scored on, and metric, as CSV and Parquet.

    A line holds the factors of the run, its tables (joined by semicolons), and from its `run.json`
    the trainable parameters, the gradient norm of the first step, the final loss, and the cosine
    of the noisy direction to the gap, which are empty for the untrained backbone.
    `costs.csv` beside it holds seconds, peak memory in MB and threads of each training.
    """
    wanted: dict[tuple[Run, str], list[str]] = {}
    for path in experiments:
        experiment = load_experiment(path)
        rows = table_rows(experiment, config, str(path))
        evaluated = [config.datasets.of(part) for part in experiment.parts()] or [TRAINING]
        for row, dataset in itertools.product(rows, evaluated):
            for run in row.runs:
                tables = wanted.setdefault((run, dataset), [])
                if Path(path).stem not in tables:
                    tables.append(Path(path).stem)
    folder = ScoreFolder(evaluations, runs)
    lines: list[dict[str, Any]] = []
    for (run, dataset), tables in wanted.items():
        wanted_by = f"table '{tables[0]}'"
        record = read_run_record(runs, run, wanted_by)
        if dataset == TRAINING:
            if record.final_loss is None:
                raise GapinitError(f"{wanted_by}: 'final_loss' of run '{run.path}' is missing")
            found = {"final_loss": record.final_loss}
        else:
            found = folder.scores(run, dataset, wanted_by).metrics
        measures = {name: getattr(record, name) for name in RUN_MEASURES}
        for metric, value in found.items():
            result = RunResult(
                run=run,
                evaluated=dataset,
                metric=metric,
                value=value,
                tables=tuple(tables),
                **measures,
            )
            lines.append({"run": run.path, **run.factors, **result.model_dump()})
    columns = ("run", *Run("", "", "").factors, *list(RunResult.model_fields)[1:])
    write_csv(output, columns, (line.values() for line in lines))
    _write_parquet(Path(output).with_suffix(".parquet"), columns, lines)
    trained = [run for run in dict.fromkeys(run for run, _ in wanted) if run.trained]
    costs = ((run.path, *attrgetter(*COSTS)(read_process(runs, run))) for run in trained)
    write_csv(Path(output).with_name("costs.csv"), ("run", *COSTS), costs)


def _write_parquet(path: Path, columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the tidy table for programs: each column with its type, whole or not at all."""
    import pyarrow as pa
    from pyarrow import parquet

    whole = {"rank", "epochs", "calibration_size", "seed", "trainable_parameters"}
    decimal = {"value", "noise", *RUN_MEASURES} - whole
    types = {name: pa.int64() for name in whole} | {name: pa.float64() for name in decimal}
    arrays = {
        name: pa.array([line.get(name) for line in lines], types.get(name, pa.string()))
        for name in columns
    }
    with atomic_file(path) as temporary:
        parquet.write_table(pa.table(arrays), temporary)


def _published(
    numbers: Sequence[PublishedNumber], experiment: Experiment, row: str | None, origin: str
) -> dict[str, PublishedNumber]:
    """Return the published numbers of a row, by metric."""
    if row is None:
        return {}
    found = (find(numbers, experiment.place, row, metric, origin) for metric in experiment.metrics)
    return {number.metric: number for number in found if number is not None}


def _lines(
    table: str,
    experiment: Experiment,
    scored: Mapping[str, Sequence[RowScores]],
    printed: Mapping[str, Mapping[str, PublishedNumber]],
    numbers: Sequence[PublishedNumber],
) -> list[Measurement]:
    """Return the lines of a table, row by row; p-values are corrected metric by metric."""
    by_cell: dict[tuple[str, str], Measurement] = {}
    for metric, rows in scored.items():
        by_id = {row.row.id: row for row in rows}
        lines = []
        for row in rows:
            line = {"table": table} | _cell(row, metric)
            number = printed[row.row.id].get(metric)
            if number is not None:
                line |= {
                    "published": number.value,
                    "published_std": number.std,
                    "difference": line["measured"] - number.value,
                    "note": elsewhere(numbers, number),
                }
            reference = by_id.get(row.row.reference or "")
            if reference is not None and row is not reference:
                line |= _comparison(row, reference, metric)
            lines.append(line)
        tested = [line for line in lines if line.get("p_value") is not None]
        adjusted = holm([line["p_value"] for line in tested])
        for line, p_holm in zip(tested, adjusted, strict=True):
            line["p_holm"] = p_holm
        by_cell.update({(line["row"], metric): Measurement(**line) for line in lines})
    ids = list(dict.fromkeys(id_ for id_, _ in by_cell))
    return [by_cell[id_, metric] for id_ in ids for metric in experiment.metrics]


def _cell(row: RowScores, metric: str) -> dict[str, Any]:
    """Return what a row measures by a metric, with its interval."""
    measured, std = mean_and_std(row.corpus(metric))
    interval = bootstrap_interval(row.matrix(metric), samples=row.samples)
    return {
        "row": row.row.id,
        "label": row.row.label,
        "metric": metric,
        "measured": measured,
        "std": std,
        "n_seeds": len(row.row.runs),
        "interval_low": interval and interval.low,
        "interval_high": interval and interval.high,
        "interval_over": interval.over if interval else "",
        "runs": [run.path for run in row.row.runs],
    }


def _comparison(row: RowScores, reference: RowScores, metric: str) -> dict[str, Any]:
    """Return row minus reference with its interval and paired p-value."""
    differences = paired_differences(row, reference, metric)
    interval = bootstrap_interval(differences, samples=row.samples)
    per_sample = differences.shape[1] > 1
    # Over samples the scores are averaged over seeds first; a corpus metric leaves only the seeds.
    pairs = differences.mean(axis=0) if per_sample else differences[:, 0]
    return {
        "vs_reference": float(differences.mean()),
        "vs_reference_low": interval and interval.low,
        "vs_reference_high": interval and interval.high,
        "p_value": permutation_p_value(pairs) if pairs.size > 1 else None,
        "p_over": (row.samples if per_sample else "seeds") if pairs.size > 1 else "",
    }


def _reading(rows: Sequence[TableRow], lines: Sequence[Measurement]) -> str:
    """Return the text that explains the cells of a table."""
    over = sorted({line.interval_over for line in lines if line.interval_over})
    text = "Measured is mean ± standard deviation over seeds"
    if over:
        text += f", with a 95 % bootstrap interval over {' or over '.join(over)} in brackets"
    few = few_seeds(lines)
    few = f" {few}" if few else ""
    labels = {row.id: row.label for row in rows}
    references = dict.fromkeys(f"'{labels[row.reference]}'" for row in rows if row.reference)
    if not references:
        return f"{text}.{few}"
    named = " or ".join(references)
    if len(references) > 1:
        named = f"each row's own reference ({named})"
    kinds = {"images": "images (CIDEr, ROUGE-L)", "questions": "questions (accuracy)"}
    tests = sorted({line.p_over for line in lines if line.p_over})
    tested = " or ".join(kinds.get(test, test) for test in tests) or "nothing"
    return (
        f"{text}. Versus is the difference to {named} on the same seeds "
        f"and samples, with its interval; p is of a paired permutation test over "
        f"{tested}, corrected by Holm's method over the rows, for each metric on its "
        "own. A test over images or questions takes the trained models as they are: unlike the "
        f"interval, it does not speak of other seeds.{few}"
    )
