"""The report: one self-contained HTML page with every table, figure, claim, run and prediction.

The page makes no request: it embeds style, script, figures and images, and its
Content-Security-Policy forbids everything else. The template engine escapes text from data
(labels, captions, notes); figures are embedded as images, in which no script can run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import atomic_file, digest, read_json
from gapinit.artifacts.digests import require_unaltered
from gapinit.config.configuration import Config
from gapinit.config.experiments import load_experiment
from gapinit.config.runs import Run
from gapinit.config.yaml_files import read_yaml
from gapinit.data.manifest import read_manifest
from gapinit.errors import GapinitError
from gapinit.report.prediction_browser import browse_predictions, data_uri
from gapinit.report.run_lines import arrange_runs
from gapinit.report.sections import (
    VERDICTS,
    answer_text,
    arrange_claims,
    arrange_questions,
    arrange_table,
    count_verdicts,
    interval_text,
    metric_name,
    number_text,
    p_text,
)
from gapinit.report.sources import digests, machine, read_papers, source_commit
from gapinit.tables.records import read_claims, read_runs, read_table
from gapinit.tables.scores import ScoreFolder

TEMPLATES = Path(__file__).parent / "templates"
HEADLINE_TABLE = "table2"
LARGEST_SVG = 600_000
"""Bytes above which a figure's PNG is embedded instead, so that the page stays light."""


def make_report(
    *,
    config: Config,
    tables: Sequence[Path],
    experiments: Sequence[Path],
    claims: Path,
    runs_table: Path,
    figures: Sequence[Path],
    evaluations: Path,
    runs: Path,
    manifest: Path,
    output: Path,
    layers: Path,
    published: Path,
    rule_graph: Path,
    link_files: bool = True,
) -> None:
    """Write the report of one configuration as a single HTML file.

    `tables` are the CSV files of stage 6, `experiments` the YAML file of each, which bears its
    name. The headline is `table2`, or else the first. `figures` and `rule_graph` are SVG files;
    `manifest` describes the in-domain dataset, whose test images the prediction browser shows.
    `layers` (JSON of the gap stage) holds the scores of all layers, `published` (a folder) what
    the papers print. With `link_files`, a run links to its log and adapter beside the page.
    Equal inputs give equal bytes. Raises GapinitError that names a missing or wrong file.
    """
    loaded = {path.stem: load_experiment(path) for path in experiments}
    arranged = [arrange_table(read_table(path), loaded[path.stem]) for path in tables]
    headline = next((table for table in arranged if table.id == HEADLINE_TABLE), arranged[0])
    shown = headline.metrics[0]
    results = arrange_claims(read_claims(claims), arranged)
    beside = Path(output).parent
    lines, versions = arrange_runs(
        read_runs(runs_table), runs, shown.metric, config.backbone, beside if link_files else None
    )
    backbones = dict.fromkeys(line.run.backbone for line in lines)
    data = read_manifest(manifest)
    content = {
        "config": config,
        "commit": source_commit(),
        "config_digest": digest(config.model_dump(mode="json")),
        "images": {split: len(data.captions(split)) for split in data.splits},
        "other_backbones": [name for name in backbones if name != config.backbone],
        "headline": headline,
        "claims": sorted(results, key=lambda claim: VERDICTS.index(claim.result.verdict)),
        "verdicts": count_verdicts(results),
        # The verdict on the first claim of the headline table opens the page.
        "lead": next((it for it in results if it.result.table == headline.id), None),
        "questions": arrange_questions(results),
        "papers": read_papers(published, [experiment.paper for experiment in loaded.values()]),
        "rule_graph": embed_figure(rule_graph),
        "machine": machine(),
        "digests": digests([*tables, claims, runs_table, manifest], beside),
        "tables": arranged,
        "table_places": {table.id: table.place for table in arranged},
        "figures": [embed_figure(path) for path in figures],
        "runs": lines,
        "run_paths": {line.run.path for line in lines},
        "run_datasets": list(dict.fromkeys(key for line in lines for key in line.scores)),
        "layers": read_json(layers),
        "browser": browse_predictions(
            # The browser shows captions; a table of questions or of trainings has none.
            shown.rows if shown.metric == "CIDEr" else (),
            scores=ScoreFolder(evaluations, runs),
            dataset=config.datasets.in_domain,
            manifest=manifest,
        ),
        "versions": versions,
        "citation": (TEMPLATES / "citation.bib").read_text(encoding="utf-8").strip(),
    }
    page = render(content)
    with atomic_file(output) as temporary:
        # JSON may hold half of a surrogate pair, which UTF-8 cannot encode: it stays an escape.
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def render(content: dict[str, Any]) -> str:
    """Fill the page template; the page's policy names the hashes of its style and script."""
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
        "run_id": "run/{}".format,
        "answer": answer_text,
        "seed": _seed,
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


def embed_figure(svg: Path) -> dict[str, str]:
    """Return a figure's id, title, caption and data URI; a large SVG gives way to its PNG."""
    if not svg.is_file():
        raise GapinitError(f"{svg}: no such figure. Draw figure '{svg.stem}' first.")
    require_unaltered(svg)
    content, media_type = svg.read_bytes(), "image/svg+xml"
    if len(content) > LARGEST_SVG:
        content, media_type = svg.with_suffix(".png").read_bytes(), "image/png"
    texts = read_yaml(TEMPLATES / "figures.yaml").get(svg.stem, {"title": svg.stem, "caption": ""})
    return {"id": svg.stem, "uri": data_uri(content, media_type), **texts}


def _seed(path: str) -> str:
    """Return a run's seed as text; the untrained backbone has none."""
    seed = Run.parse(path).seed
    return "run" if seed is None else str(seed)


def _policy_hash(text: str) -> str:
    """Return the source expression that allows exactly this inline text (CSP level 2)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
