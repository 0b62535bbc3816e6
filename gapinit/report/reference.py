"""The reference result: tables, figures, claims and report of one complete run, kept with the code.

A visitor sees them without running anything. `reference.json` records the versions of the stages
and the digests of the configuration, of every experiment and of the published numbers; `outdated`
compares that record with the current code.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import atomic_folder, digest, read_json, sha256, write_json
from gapinit.artifacts.digests import is_record
from gapinit.config.configuration import Config
from gapinit.config.experiments import load_experiment
from gapinit.config.versions import VERSIONS
from gapinit.errors import GapinitError
from gapinit.report.page import TEMPLATES, make_report
from gapinit.report.sources import source_commit
from gapinit.tables.published import published_files
from gapinit.tables.records import read_configuration

LARGEST = 8_000_000
"""Maximal size of a reference result, in bytes."""
RECORD = "reference.json"
TABLE_SUFFIXES = (".csv", ".md", ".tex")
FIGURE_SUFFIXES = (".svg", ".png", ".pdf", ".csv")


def make_reference(results: Path, output: Path, project: Path) -> None:
    """Copy the results of a complete workflow run, with digests of its inputs.

    Args:
        results: folder of one configuration's results, `results/<name>`.
        output: folder that is replaced as a whole, `results/reference`.
        project: the checkout, which holds `config/` and `docs/`.

    Raises:
        GapinitError: the run is not complete (each missing file is named), or too large to keep.
    """
    results, project = Path(results), Path(project)
    config = read_configuration(results / "configuration.json")
    tables = [results / "6_tables" / f"{name}.csv" for name in config.experiments]
    figures = [results / "7_figures" / f"{name}.svg" for name in config.figures]
    wanted = [path.with_suffix(suffix) for path in tables for suffix in TABLE_SUFFIXES]
    wanted += [path.with_suffix(suffix) for path in figures for suffix in FIGURE_SUFFIXES]
    wanted += [results / "6_tables" / "runs.csv", results / "claims.csv", results / "claims.md"]
    wanted += [results / "configuration.json", results / "report.html"]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise GapinitError(
            f"{results}: not a complete run, there is no {', '.join(str(path) for path in missing)}"
            ". Run the workflow with this configuration to its end first."
        )
    with atomic_folder(output) as folder:
        for path in wanted:
            if path.name != "report.html":
                kept = folder / path.relative_to(results)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, kept)
        shutil.copyfile(TEMPLATES / "citation.bib", folder / "citation.bib")
        # The logs and adapters of the runs are not kept, so the page links to none of them.
        make_report(
            config=config,
            tables=tables,
            claims=results / "claims.csv",
            runs_table=results / "6_tables" / "runs.csv",
            figures=figures,
            evaluations=results / "5_evaluate" / "runs",
            runs=results / "4_train" / "runs",
            manifest=results.parent / "1_data" / config.datasets.in_domain / "manifest.json",
            output=folder / "report.html",
            experiments=[
                project / f"config/experiments/{name}.yaml" for name in config.experiments
            ],
            layers=results / "3_gap" / config.backbone / "layers.json",
            published=project / "config/published",
            rule_graph=project / "docs/rulegraph.svg",
            link_files=False,
        )
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not is_record(path))
        size = sum(path.stat().st_size for path in files)
        if size > LARGEST:
            largest = max(files, key=lambda path: path.stat().st_size)
            raise GapinitError(
                f"{results}: the reference result would take {size / 1e6:.1f} MB, expected at most "
                f"{LARGEST / 1e6:.0f}; the largest file is {largest.relative_to(folder)}"
            )
        record = made_from(config, project) | {
            "commit": source_commit(),
            "files": {path.relative_to(folder).as_posix(): sha256(path) for path in files},
        }
        write_json(folder / RECORD, record)


def made_from(config: Config, project: Path) -> dict[str, Any]:
    """Return the versions and digests that decide the numbers of a configuration."""
    experiments = {
        name: project / "config/experiments" / f"{name}.yaml" for name in config.experiments
    }
    papers = dict.fromkeys(load_experiment(path).paper for path in experiments.values())
    published = [
        path for paper in papers for path in published_files(project / "config/published", paper)
    ]
    return {
        "name": config.name,
        "versions": dict(VERSIONS),
        "configuration": digest(config.model_dump(mode="json")),
        "experiments": {name: sha256(path) for name, path in experiments.items()},
        "published": {path.stem: sha256(path) for path in published},
    }


def outdated(reference: Path, config: Config, project: Path) -> list[str]:
    """Return the reasons why a reference result is older than the code, one line each.

    `config` is the configuration that would be run now.
    """
    record = read_json(Path(reference) / RECORD)
    now = made_from(config, project)
    reasons = []
    for key, what in (
        ("versions", "stage '{}'"),
        ("experiments", "experiment '{}'"),
        ("published", "published numbers '{}'"),
    ):
        before, after = record[key], now[key]
        for name in dict.fromkeys([*before, *after]):
            if before.get(name) != after.get(name):
                then, today = before.get(name, "none"), after.get(name, "none")
                changed = f"version {then} then, {today} now" if key == "versions" else "changed"
                reasons.append(f"{what.format(name)}: {changed}")
    if record.get("configuration") != now["configuration"]:
        reasons.append("the configuration: changed")
    for name, recorded in record["files"].items():
        path = Path(reference) / name
        if not path.is_file() or sha256(path) != recorded:
            reasons.append(f"{name}: missing or changed by hand")
    return reasons
