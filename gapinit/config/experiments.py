"""Experiments: the rows of a paper's table, and their runs.

An experiment is a file `config/experiments/<name>.yaml`: rows of factors (a list makes one row per
value), the metrics of the rows, and the claims about them. No torch: the Snakefile reads this at
every parse.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gapinit.config.claim_language import Statement, parse_claim
from gapinit.config.configuration import (
    Config,
    Name,
    Positive,
    Source,
    Strategy,
)
from gapinit.config.methods import METHODS, require_rank
from gapinit.config.runs import FACTORS, NoiseScale, Run, TableRow
from gapinit.config.yaml_files import Settings, check_settings, read_yaml
from gapinit.errors import GapinitError


@dataclass(frozen=True)
class Metric:
    """The source of a table column."""

    score: str
    """Its name in score files (percent)."""
    part: str | None = None
    """Part of the dataset that it is measured on; None: the experiment's."""
    of_training: bool = False
    """Whether it is measured on the training (`gapinit/tables/measures.py`)."""


METRICS = {
    **{
        name: Metric(name)
        for name in ("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L")
    },
    "VQAv2_accuracy": Metric("accuracy", "vqa"),
    "OKVQA_accuracy": Metric("accuracy", "okvqa"),
    # ASSUME: the paper prints one F1 and does not say how it combines POPE's three files; others
    # print the mean over files.
    "POPE_F1": Metric("mean_f1", "pope"),
    "POPE_accuracy": Metric("mean_accuracy", "pope"),
    "POPE_yes_rate": Metric("mean_yes_rate", "pope"),
    **{
        name: Metric(name, of_training=True)
        for name in (
            "first_grad_norm",
            "gradient_share",
            "trainable_parameters",
            "final_loss",
            "loss_oscillation",
            "peak_grad_norm",
            "final_grad_norm",
            "final_alignment",
            "steps_to_loss",
        )
    },
}
"""Metrics of experiments, by the names of the published numbers."""

Noise = Annotated[float, Field(ge=0, le=1000)]


class Row(Settings):
    """A row of a table: factors, each a value or a list that makes one row per value."""

    id: str
    """Name of the row in its table; may contain factors in braces."""
    label: str
    backbone: Name | list[Name] | None = None
    """Part in the configuration's `backbones`; None: the main backbone."""
    method: str | list[str]
    rank: Positive | list[Positive] = 1
    layers: Strategy | list[Strategy] = "naive"
    epochs: Positive | list[Positive] | None = None
    calibration: Source | list[Source] | None = None
    calibration_size: Positive | list[Positive] | None = None
    noise: Noise | list[Noise] = 0.0
    noise_scale: NoiseScale | list[NoiseScale] = "unit"
    published: str | None = None
    """Row of `config/published/*.csv` to print beside it; may contain factors in braces."""
    reference: str | None = None
    """Id of the row to compare with; default: the experiment's. May contain factors in braces."""

    @model_validator(mode="after")
    def _multiplies_out(self) -> Row:
        for factor in FACTORS:
            if getattr(self, factor) == []:
                raise ValueError(f"'{factor}' of row '{self.id}' is an empty list")
        for noise in _values(self.noise):
            # A run's path has six digits of the noise; with more, two runs could share a path.
            if float(f"{noise:g}") != noise:
                raise ValueError(f"noise {noise!r} has more than six significant digits")
        for template in (self.id, self.label, self.published or "", self.reference or ""):
            try:
                template.format_map(dict.fromkeys(FACTORS, ""))
            except (LookupError, ValueError, AttributeError) as error:
                raise ValueError(
                    f"braces in '{template}': {error}, expected one of: {', '.join(FACTORS)}"
                ) from None
        return self


class Claim(Settings):
    """A statement of the paper about a table, in a form that the numbers can contradict."""

    text: str
    claim: str
    """The statement as an expression over the rows (`gapinit/config/claim_language.py`)."""
    question: str | None = None
    """The question that several claims answer together."""

    @field_validator("claim")
    @classmethod
    def _is_understood(cls, claim: str) -> str:
        parse_claim(claim)
        return claim

    @property
    def statement(self) -> Statement:
        """Return the claim's two sides, metric, statistic and margin."""
        return parse_claim(self.claim)

    def rows(self, rows: Sequence[TableRow], origin: str) -> tuple[TableRow, TableRow]:
        """Return the better and the worse row; raise GapinitError for an unknown row."""
        statement = self.statement
        try:
            return statement.better.find(rows), statement.worse.find(rows)
        except ValueError as error:
            raise GapinitError(f"{origin}: claim '{self.claim}': {error}") from None


class Experiment(Settings):
    """One table of a paper: its rows, their metrics, and claims about them."""

    title: str
    paper: Name
    place: str
    train: Literal["in-domain", "vqa", "instruct"] = "in-domain"
    """Part of the dataset that runs are fine-tuned on."""
    evaluate: Literal["in-domain", "ood"] = "in-domain"
    """Part of the dataset for caption scores; other metrics have their own part."""
    metrics: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)] | None = None
    target_loss: float | None = None
    """The loss at which `steps_to_loss` stops counting."""
    reference: str | None = None
    """Id of the row that all others are compared with, by seed and image; a row may override it."""
    rows: Annotated[list[Row], Field(min_length=1)]
    claims: list[Claim] = []
    note: str = ""

    @model_validator(mode="after")
    def _metrics_known(self) -> Experiment:
        for metric in self.metrics:
            if metric not in METRICS:
                raise ValueError(
                    f"unknown metric '{metric}', expected one of: {', '.join(METRICS)}"
                )
        if "steps_to_loss" in self.metrics and self.target_loss is None:
            raise ValueError("the metric 'steps_to_loss' needs a 'target_loss'")
        for claim in self.claims:
            metric = claim.statement.metric
            if metric not in self.metrics:
                raise ValueError(
                    f"claim '{claim.claim}': unknown metric '{metric}', expected one of: "
                    f"{', '.join(self.metrics)}"
                )
        without = [row.id for row in self.rows if row.reference is None]
        if self.reference is None and 0 < len(without) < len(self.rows):
            raise ValueError(
                f"row '{without[0]}' has no 'reference', but other rows have one: add it to the "
                "row, or add one for all rows to the experiment"
            )
        return self

    def part(self, metric: str) -> str:
        """Return the part of the dataset for a metric."""
        return METRICS[metric].part or self.evaluate

    def parts(self) -> list[str]:
        """Return the parts for scoring runs; none if all metrics are of the training."""
        scored = (metric for metric in self.metrics if not METRICS[metric].of_training)
        return list(dict.fromkeys(self.part(metric) for metric in scored))


def load_experiment(path: Path) -> Experiment:
    """Read an experiment; raise GapinitError for a wrong key, method, rank or claim."""
    experiment = check_settings(read_yaml(path), Experiment, origin=str(path))
    for row in experiment.rows:
        for method in _values(row.method):
            if method not in METHODS:
                raise GapinitError(
                    f"{path}: row '{row.id}': key 'method': unknown method '{method}', expected "
                    f"one of: {', '.join(METHODS)}"
                )
            for rank in _values(row.rank):
                require_rank(method, rank, f"{path}: row '{row.id}'")
    return experiment


def table_rows(experiment: Experiment, config: Config, origin: str) -> list[TableRow]:
    """Return an experiment's rows, one per combination of factors, with defaults filled in."""
    rows = [row for given in experiment.rows for row in _expand(given, experiment, config, origin)]
    ids = [row.id for row in rows]
    for row in rows:
        if ids.count(row.id) > 1:
            raise GapinitError(f"{origin}: two rows have the id '{row.id}': ids must differ")
        if row.reference is not None and row.reference not in ids:
            raise GapinitError(
                f"{origin}: row '{row.id}': key 'reference': unknown row '{row.reference}', "
                f"expected one of: {', '.join(ids)}"
            )
    for claim in experiment.claims:
        claim.rows(rows, origin)
    return rows


def _expand(row: Row, experiment: Experiment, config: Config, origin: str) -> list[TableRow]:
    factors = {name: getattr(row, name) for name in FACTORS}
    factors["calibration"] = row.calibration or config.calibration.source
    factors["calibration_size"] = row.calibration_size or config.calibration.size
    reference = row.reference or experiment.reference
    rows = []
    for values in itertools.product(*map(_values, factors.values())):
        point = dict(zip(factors, values, strict=True))
        try:
            backbone = config.backbone_of(point["backbone"])
        except GapinitError as error:
            raise GapinitError(f"{origin}: row '{row.id}': key 'backbone': {error}") from None
        point["epochs"] = point["epochs"] or config.training_of(backbone).epochs
        # Templates contain the backbone's part, runs its name.
        named = point | {"backbone": point["backbone"] or backbone, "noise": f"{point['noise']:g}"}
        point["backbone"] = backbone
        runs = [
            _run(point, seed, config, experiment.train) for seed in experiment.seeds or config.seeds
        ]
        rows.append(
            TableRow(
                id=row.id.format_map(named),
                label=row.label.format_map(named),
                published=row.published and row.published.format_map(named),
                runs=tuple(dict.fromkeys(runs)),
                reference=reference and reference.format_map(named),
            )
        )
    return rows


def _run(point: dict[str, Any], seed: int, config: Config, train: str) -> Run:
    """Return a run with only the factors that its method depends on, so equal runs share a path."""
    method = METHODS[point["method"]]
    head: dict[str, Any] = {"backbone": point["backbone"], "dataset": config.datasets.of(train)}
    if not method.adapt:
        return Run(**head, method=method.name)
    run = {key: point[key] for key in ("method", "rank", "layers", "epochs")}
    if method.uses_gap:
        run |= {key: point[key] for key in ("calibration", "calibration_size")}
        if method.takes_noise and point["noise"]:
            run |= {"noise": float(point["noise"]), "noise_scale": point["noise_scale"]}
    return Run(**head, **run, seed=seed)


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]
