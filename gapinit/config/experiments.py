"""Experiments: the rows of a paper's table, and their runs.

An experiment is one file, `config/experiments/<name>.yaml`: rows of factors, where a list stands
for every value in it, the metrics measured on the rows, and the claims that they test. No torch:
the Snakefile reads this at every parse.
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
    """A column of a table: where its score comes from."""

    score: str
    """Its name in score files (percent)."""
    part: str | None = None
    """The dataset it is measured on; None: the one that the experiment evaluates on."""
    of_training: bool = False
    """Whether it is measured on the training itself (`gapinit/tables/measures.py`)."""


METRICS = {
    **{
        name: Metric(name)
        for name in ("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L")
    },
    "VQAv2_accuracy": Metric("accuracy", "vqa"),
    "OKVQA_accuracy": Metric("accuracy", "okvqa"),
    # ASSUME: the paper prints one F1 without saying how the three files of POPE make it one; the
    # mean over files is what others print.
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
"""Metrics that an experiment may ask for, by the names of the published numbers."""

Noise = Annotated[float, Field(ge=0, le=1000)]


class Row(Settings):
    """A row of a table: factors, each a value or a list of values to multiply out."""

    id: str
    """Name of the row within its table; may hold factors in braces when lists multiply it."""
    label: str
    backbone: Name | list[Name] | None = None
    """Part of the configuration's `backbones`; None: its main backbone."""
    method: str | list[str]
    rank: Positive | list[Positive] = 1
    layers: Strategy | list[Strategy] = "naive"
    epochs: Positive | list[Positive] | None = None
    calibration: Source | list[Source] | None = None
    calibration_size: Positive | list[Positive] | None = None
    noise: Noise | list[Noise] = 0.0
    noise_scale: NoiseScale | list[NoiseScale] = "unit"
    published: str | None = None
    """Row of `config/published/*.csv` to print beside it; may hold factors in braces."""
    reference: str | None = None
    """Id of the row to compare with, if not the experiment's; may hold factors in braces."""

    @model_validator(mode="after")
    def _multiplies_out(self) -> Row:
        for factor in FACTORS:
            if getattr(self, factor) == []:
                raise ValueError(f"'{factor}' of row '{self.id}' is an empty list")
        for noise in _values(self.noise):
            # A run's path spells the noise with six digits: more would make two runs one.
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
    """The same as an expression over the rows (`gapinit/config/claim_language.py`)."""
    question: str | None = None
    """The question that several claims answer together, if there is one."""

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
        """Return the rows that should be better and worse; one that is not there is an error."""
        statement = self.statement
        try:
            return statement.better.find(rows), statement.worse.find(rows)
        except ValueError as error:
            raise GapinitError(f"{origin}: claim '{self.claim}': {error}") from None


class Experiment(Settings):
    """One table of a paper: its rows, their metrics, and the claims that they test."""

    title: str
    paper: Name
    place: str
    train: Literal["in-domain", "vqa", "instruct"] = "in-domain"
    """Part of the dataset that runs are fine-tuned on."""
    evaluate: Literal["in-domain", "ood"] = "in-domain"
    """Part of the dataset that captions are scored on; other metrics have theirs."""
    metrics: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)] | None = None
    target_loss: float | None = None
    """The loss at which `steps_to_loss` stops counting."""
    reference: str | None = None
    """Id of the row to compare all others with, seed by seed and image by image, unless a row names
    its own."""
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
                    f"claim '{claim.claim}' speaks of metric '{metric}', the table has: "
                    f"{', '.join(self.metrics)}"
                )
        without = [row.id for row in self.rows if row.reference is None]
        if self.reference is None and 0 < len(without) < len(self.rows):
            raise ValueError(
                f"row '{without[0]}' has no 'reference', but other rows have: give it one, or the "
                "experiment one for all"
            )
        return self

    def part(self, metric: str) -> str:
        """Return the part of the dataset that a metric is measured on."""
        return METRICS[metric].part or self.evaluate

    def parts(self) -> list[str]:
        """Return the parts that runs are scored on; none if only trainings are measured."""
        scored = (metric for metric in self.metrics if not METRICS[metric].of_training)
        return list(dict.fromkeys(self.part(metric) for metric in scored))


def load_experiment(path: Path) -> Experiment:
    """Read one experiment file; wrong keys, unknown methods and claims on no row are errors."""
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
    """Multiply out an experiment's rows into runs, with the configuration's defaults filled in."""
    rows = [row for given in experiment.rows for row in _expand(given, experiment, config, origin)]
    ids = [row.id for row in rows]
    for row in rows:
        if ids.count(row.id) > 1:
            raise GapinitError(f"{origin}: two rows with the id '{row.id}': ids must differ")
        if row.reference is not None and row.reference not in ids:
            raise GapinitError(
                f"{origin}: row '{row.id}': key 'reference' names row '{row.reference}', expected "
                f"one of: {', '.join(ids)}"
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
        # Templates name the backbone's part, runs the backbone itself.
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
    """Keep of a row's factors those that the method depends on: equal runs get equal paths."""
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
