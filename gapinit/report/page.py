"""The report: one self-contained HTML page with every table, figure, claim, run and prediction.

The page makes no request of any kind: style, script, figures and images are in it, and its
Content-Security-Policy forbids everything else. Text from data (labels, captions, notes) is
escaped by the template engine; figures are embedded as images, where no script can run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import atomic_file, digest
from gapinit.artifacts.digests import require_unaltered
from gapinit.config.configuration import Config
from gapinit.config.experiments import Experiment, load_experiment
from gapinit.config.runs import Run
from gapinit.config.yaml_files import read_yaml
from gapinit.data.manifest import read_manifest
from gapinit.errors import GapinitError
from gapinit.report.prediction_browser import browse_predictions, data_uri
from gapinit.report.run_lines import arrange_runs
from gapinit.report.sections import (
    Table,
    answer_text,
    arrange_claims,
    arrange_questions,
    arrange_table,
    count_verdicts,
    interval_text,
    metric_name,
    number_text,
    p_text,
    read_layers,
)
from gapinit.report.sources import digests, machine, read_papers
from gapinit.tables.records import read_claims, read_runs, read_table
from gapinit.tables.scores import ScoreFolder

TEMPLATES = Path(__file__).parent / "templates"
HEADLINE_TABLE = "table2"
LARGEST_SVG = 600_000
"""Bytes above which a figure's PNG is embedded instead, so that the page stays light."""


@dataclass(frozen=True)
class Figure:
    """One figure as it stands in the page."""

    id: str
    title: str
    caption: str
    uri: str


def make_report(
    *,
    title: str,
    config: Config,
    tables: Sequence[Path],
    experiments: Sequence[Path],
    claims: Path,
    runs_table: Path,
    figures: Sequence[Path],
    evaluations: Path,
    runs: Path,
    manifest: Path,
    predictions_dataset: str,
    output: Path,
    commit: str | None,
    layers: Path,
    published: Path,
    rule_graph: Path,
    link_files: bool = True,
) -> None:
    """Write the report of one configuration as a single HTML file.

    `tables` are the CSV files of stage 6, the headline one being `table2` or else the first;
    `experiments` (YAML files) give them their titles and notes; `figures` are stems or SVG files;
    `manifest` is that of `predictions_dataset`, whose test images the browser of predictions
    shows. `layers` (JSON of the gap stage) holds the scores of all layers, `published` (folder of
    the papers' numbers) what the papers print for one configuration in several places,
    `rule_graph` (SVG) the workflow. With `link_files`, runs lead to their logs and adapters where
    these lie beside the page.
    The same inputs give the same bytes. Raises GapinitError that names a missing or wrong file.
    """
    pictures = [_figure(path) for path in figures]
    loaded = {path.stem: load_experiment(path) for path in experiments}
    arranged = _tables(tables, loaded)
    headline = next((table for table in arranged if table.id == HEADLINE_TABLE), arranged[0])
    shown = headline.metrics[0]
    verdicts = read_claims(claims)
    results = arrange_claims(verdicts, arranged)
    in_order = sorted(results, key=lambda claim: verdicts.index(claim.result))
    lines, versions = arrange_runs(
        read_runs(runs_table),
        runs,
        shown.metric,
        config.backbone,
        Path(output).parent if link_files else None,
    )
    backbones = dict.fromkeys(line.run.backbone for line in lines)
    browser = browse_predictions(
        # Only captions are browsed: a table of questions or of trainings has none.
        shown.rows if shown.metric == "CIDEr" else (),
        scores=ScoreFolder(evaluations, runs),
        dataset=predictions_dataset,
        manifest=manifest,
    )
    content = {
        "title": title,
        "config": config,
        "commit": commit,
        "config_digest": digest(config.model_dump(mode="json")),
        "scale": _scale(config, manifest, predictions_dataset),
        "other_backbones": [name for name in backbones if name != config.backbone],
        "headline": headline,
        "claims": results,
        "verdicts": count_verdicts(results),
        # What the first claim of the headline table says stands above everything else.
        "lead": next((it for it in in_order if it.result.table == headline.id), None),
        "questions": arrange_questions(in_order),
        "papers": read_papers(published, [experiment.paper for experiment in loaded.values()]),
        "rule_graph": _figure(rule_graph),
        "machine": machine(),
        "digests": digests([*tables, claims, runs_table, manifest], Path(output).parent),
        "tables": arranged,
        "table_places": {table.id: table.place for table in arranged},
        "figures": pictures,
        "runs": lines,
        "run_paths": {line.run.path for line in lines},
        "run_datasets": list(dict.fromkeys(key for line in lines for key in line.scores)),
        "run_metric": metric_name(shown.metric),
        "layers": read_layers(layers),
        "browser": browser,
        "versions": versions,
        "citation": (TEMPLATES / "citation.bib").read_text(encoding="utf-8").strip(),
    }
    page = render(content)
    with atomic_file(output) as temporary:
        # A record of others may hold half of a character pair, which no file can: an escape stays.
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def render(content: dict[str, Any]) -> str:
    """Fill the page template; style and script enter with their hashes in the page's policy."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number_text,
        "interval": interval_text,
        "p_value": p_text,
        "metric": metric_name,
        "run_id": run_id,
        "answer": answer_text,
        "seed": _seed,
        "method": lambda path: Run.parse(path).method,
    }
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        **content,
        style=Markup(style),
        style_hash=_policy_hash(style),
        script=Markup(script),
        script_hash=_policy_hash(script),
    )


def run_id(path: str) -> str:
    """Return the anchor of a run in the page."""
    return f"run/{path}"


def _tables(paths: Sequence[Path], experiments: Mapping[str, Experiment]) -> list[Table]:
    arranged = []
    for path in paths:
        measurements = read_table(path)
        name = measurements[0].table
        if name not in experiments:
            raise GapinitError(
                f"{path}: expected a table of the experiments {', '.join(experiments)}, found "
                f"'{name}'. Name its experiment, too."
            )
        arranged.append(arrange_table(measurements, experiments[name]))
    return arranged


def _figure(path: Path) -> Figure:
    """Embed one figure, given by its stem or by its SVG file."""
    path = Path(path)
    svg = path if path.suffix == ".svg" else path.with_name(f"{path.name}.svg")
    if not svg.is_file():
        raise GapinitError(f"{svg}: no such figure. Draw figure '{svg.stem}' first.")
    require_unaltered(svg)
    content, media_type = svg.read_bytes(), "image/svg+xml"
    png = svg.with_suffix(".png")
    if len(content) > LARGEST_SVG and png.is_file():
        content, media_type = png.read_bytes(), "image/png"
    texts = read_yaml(TEMPLATES / "figures.yaml").get(svg.stem, {})
    return Figure(
        id=svg.stem,
        title=texts.get("title", svg.stem),
        caption=texts.get("caption", ""),
        uri=data_uri(content, media_type),
    )


def _scale(config: Config, manifest: Path, dataset: str) -> dict[str, Any]:
    """Say at which scale the numbers were measured."""
    data = read_manifest(manifest)
    splits = {split: data.captions(split) for split in data.splits}
    return {
        "backbone": config.backbone,
        "train": config.datasets.in_domain,
        "ood": config.datasets.ood,
        "dataset": dataset,
        "images": {split: len(images) for split, images in splits.items() if images},
        "captions": {
            split: sum(len(image.captions) for image in images) for split, images in splits.items()
        },
        "seeds": config.seeds,
        "epochs": config.training.epochs,
    }


def _seed(path: str) -> str:
    """Return what tells a row's runs apart: the seed, or a word for the untrained backbone."""
    seed = Run.parse(path).seed
    return "run" if seed is None else str(seed)


def _policy_hash(text: str) -> str:
    """Return the source expression that allows exactly this inline text (CSP level 2)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
