"""From scores to tables, verdicts, figures and the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gapinit.cli.options import Manifest, Output, choice, one_line

if TYPE_CHECKING:
    from gapinit.config.configuration import Config

app = typer.Typer()

Configuration = Annotated[Path, typer.Option(help="Checked configuration, JSON.")]
Evaluations = Annotated[Path, typer.Option(help="Folder of all runs' scores.")]
Runs = Annotated[Path, typer.Option(help="Folder of all runs.")]
Published = Annotated[Path, typer.Option(help="Folder of published numbers.")]
Experiments = Annotated[list[Path], typer.Option(help="Experiment file; may be repeated.")]


@app.command()
def configuration(
    content: Annotated[str, typer.Option(help="The configuration as JSON.")], output: Output
) -> None:
    """Check a configuration and write it for the commands that read experiments."""
    import json

    from gapinit.artifacts.artifacts import write_json
    from gapinit.config.configuration import Config
    from gapinit.config.yaml_files import check_settings

    checked = check_settings(json.loads(content), Config, "--content")
    write_json(output, checked.model_dump(mode="json", by_alias=True))


@app.command()
def table(
    experiment: Annotated[Path, typer.Option(help="Experiment file, config/experiments/*.yaml.")],
    configuration: Configuration,
    evaluations: Evaluations,
    runs: Runs,
    published: Published,
    output: Output,
) -> None:
    """Write one table with published and measured numbers (CSV, Markdown, LaTeX)."""
    from gapinit.tables.table import make_table

    make_table(experiment, _config(configuration), evaluations, runs, published, output)


@app.command()
def runs(
    experiment: Experiments,
    configuration: Configuration,
    evaluations: Evaluations,
    runs: Runs,
    output: Output,
) -> None:
    """Write one table with a row for every run, dataset and metric (CSV)."""
    from gapinit.tables.table import tidy_runs

    tidy_runs(experiment, _config(configuration), evaluations, runs, output)


@app.command()
def claims(
    experiment: Experiments,
    configuration: Configuration,
    evaluations: Evaluations,
    runs: Runs,
    output: Output,
) -> None:
    """Write a verdict on every claim of the experiments (CSV)."""
    from gapinit.tables.claims import check_claims

    check_claims(experiment, _config(configuration), evaluations, runs, output)


@app.command()
def figure(
    name: Annotated[str, typer.Argument(help="Name of the figure.")],
    output: Annotated[Path, typer.Option(help="Path of all output files without suffix.")],
    table: Annotated[Path | None, typer.Option(help="Table, CSV.")] = None,
    states: Annotated[
        list[Path] | None, typer.Option(help="States file, or all its shards.")
    ] = None,
    gap: Annotated[Path | None, typer.Option(help="Gap file.")] = None,
    run: Annotated[list[Path] | None, typer.Option(help="A run's run.json; may repeat.")] = None,
) -> None:
    """Draw one figure (PDF, PNG, SVG) and write its numbers (CSV)."""
    from importlib import import_module

    from gapinit.figures import FIGURES

    choice(name, "figure", tuple(FIGURES))
    figure = FIGURES[name]
    given = {"table": table, "states": states, "gap": gap, "runs": run}
    given = {key: value for key, value in given.items() if value is not None}
    draw = import_module(f"gapinit.figures.{figure.module}").draw
    draw(**given, **figure.options, output=output)


@app.command()
def report(
    table: Annotated[list[Path], typer.Option(help="Table, CSV; may repeat.")],
    experiment: Experiments,
    configuration: Configuration,
    claims: Annotated[Path, typer.Option(help="Verdicts, CSV.")],
    runs_table: Annotated[Path, typer.Option(help="Tidy table of all runs, CSV.")],
    evaluations: Evaluations,
    runs: Runs,
    manifest: Manifest,
    layers: Annotated[Path, typer.Option(help="Layer choice, JSON.")],
    published: Published,
    rule_graph: Annotated[Path, typer.Option(help="The workflow's rules, SVG.")],
    output: Output,
    figure: Annotated[list[Path] | None, typer.Option(help="Figure, SVG; may repeat.")] = None,
) -> None:
    """Write the report, one self-contained HTML page."""
    from gapinit.report.page import make_report

    make_report(
        config=_config(configuration),
        tables=table,
        claims=claims,
        runs_table=runs_table,
        figures=figure or [],
        evaluations=evaluations,
        runs=runs,
        manifest=manifest,
        output=output,
        experiments=experiment,
        layers=layers,
        published=published,
        rule_graph=rule_graph,
    )


@app.command()
def verify(
    results: Annotated[Path, typer.Argument(help="Folder of one configuration's results.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List altered, missing and unknown files of a results folder; exit with 1 if there are any."""
    import json

    from gapinit.workflow.verify import verify_results

    verdict = verify_results(results)
    if as_json:
        print(json.dumps(verdict.as_json(), indent=1, ensure_ascii=True))
    else:
        for kind in ("altered", "missing", "unknown"):
            for path, why in sorted(getattr(verdict, kind).items()):
                print(f"{kind} {one_line(path)}: {why}")
        print(
            f"{verdict.intact} files as written, {len(verdict.altered)} altered, "
            f"{len(verdict.missing)} missing, {len(verdict.unknown)} unknown"
        )
    if not verdict.clean:
        raise typer.Exit(1)


@app.command()
def summary(
    results: Annotated[Path, typer.Argument(help="Folder of one configuration's results.")],
) -> None:
    """Print the path of the report, the headline table and the verdicts."""
    from gapinit.report.summary import print_summary

    print_summary(results)


@app.command()
def track(
    run: Annotated[Path, typer.Option(help="Folder of a trained run: run.json, steps.csv.")],
    report_to: Annotated[list[str], typer.Option(help="tensorboard, wandb, mlflow; may repeat.")],
    folder: Annotated[Path, typer.Option(help="Folder for the trackers' local files.")],
    output: Annotated[Path | None, typer.Option(help="Record of the report, JSON.")] = None,
) -> None:
    """Send a run's training metrics to TensorBoard, Weights & Biases or MLflow."""
    from gapinit.artifacts.artifacts import write_json
    from gapinit.train.trackers import report_run

    name = report_run(run, report_to, folder)
    if output is not None:
        write_json(output, {"run": name, "report_to": report_to})


@app.command()
def reference(
    results: Annotated[Path, typer.Option(help="Folder of one configuration's results.")],
    output: Output,
    project: Annotated[Path, typer.Option(help="The checkout, with config/ and docs/.")] = Path(),
) -> None:
    """Copy tables, figures, claims and report of a complete run, with checksums."""
    from gapinit.report.reference import make_reference

    make_reference(results, output, project)


@app.command()
def readme(
    reference: Annotated[Path, typer.Option(help="A reference result.")],
    output: Output,
) -> None:
    """Write the headline of a reference result between the two markers of a README."""
    from gapinit.report.readme import write_readme

    write_readme(output, reference)


def _config(path: Path) -> Config:
    from gapinit.tables.records import read_configuration

    return read_configuration(path)
