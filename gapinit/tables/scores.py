"""Read score files, each once, and pair scores by sample and seed.

A row of a table becomes a matrix of scores, seeds x samples: images with captions, or questions.
Files are checked as they are read: all score files of a dataset must hold the same samples, and
per-sample values must average to the corpus value that stands beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from gapinit.artifacts.artifacts import read_json
from gapinit.config.configuration import Config
from gapinit.config.experiments import METRICS, Experiment
from gapinit.config.runs import Run, TableRow
from gapinit.config.yaml_files import check_settings
from gapinit.errors import GapinitError
from gapinit.tables.measures import measure, read_run_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEANS_OVER_SAMPLES = ("CIDEr", "ROUGE_L", "accuracy")
"""Scores whose corpus value is the mean of per-sample values; BLEU, METEOR and F1 are not."""


class Sample(BaseModel):
    """One image or question in a score file; scores in percent."""

    image_id: int | str | None = None
    question_id: int | str | None = None
    category: str | None = None
    caption: str = ""
    CIDEr: float | None = None
    ROUGE_L: float | None = None
    accuracy: float | None = None

    @property
    def id(self) -> int | str | None:
        """The sample's identity: POPE numbers its questions from 1 in each category."""
        if self.question_id is None:
            return self.image_id
        return f"{self.category}/{self.question_id}" if self.category else self.question_id


class ScoreFile(BaseModel):
    """The keys of a score file that tables read."""

    model_config = ConfigDict(allow_inf_nan=False)

    metrics: dict[str, float]
    per_sample: list[Sample] = Field(min_length=1)


@dataclass(frozen=True)
class Scores:
    """What one run scored on one dataset, in percent."""

    path: Path
    metrics: dict[str, float]
    samples: str
    """The kind of sample: `images` or `questions`."""
    sample_ids: tuple[int | str | None, ...]
    per_sample: dict[str, NDArray[np.float64]]
    """By metric of `MEANS_OVER_SAMPLES`, in the order of `sample_ids`."""
    captions: tuple[str, ...] = ()

    def metric(self, name: str) -> float:
        """Return a corpus value; an error that names the file if it was not scored."""
        if name not in self.metrics:
            raise GapinitError(
                f"{self.path}: metric '{name}' is missing, found: {', '.join(self.metrics)}. "
                "Delete the file and score again with this metric."
            )
        return self.metrics[name]


def read_scores(path: Path) -> Scores:
    """Read one score file, its samples in the order of their ids."""
    content = check_settings(read_json(path), ScoreFile, str(path))
    samples = sorted(content.per_sample, key=lambda sample: str(sample.id))
    sample_ids = tuple(sample.id for sample in samples)
    num_distinct = len(set(sample_ids))
    what = "images" if samples[0].question_id is None else "questions"
    if num_distinct != len(sample_ids):
        raise GapinitError(
            f"{path}: expected each sample once in 'per_sample', found {len(sample_ids)} entries "
            f"for {num_distinct} {what}. Delete it and score again."
        )
    per_sample = {
        # A sample without the score is nan, which the mean then is, too.
        name: np.array([getattr(sample, name) for sample in samples], dtype=np.float64)
        for name in MEANS_OVER_SAMPLES
        if name in content.metrics
    }
    for name, values in per_sample.items():
        if not abs(values.mean() - content.metrics[name]) <= 1e-4:
            raise GapinitError(
                f"{path}: '{name}' is {content.metrics[name]} in 'metrics', but the mean over "
                f"'per_sample' is {values.mean()}. Delete it and score again."
            )
    captions = tuple(sample.caption for sample in samples)
    return Scores(path, content.metrics, what, sample_ids, per_sample, captions)


class ScoreFolder:
    """The score files of one workflow, read at most once each.

    A score file is `<folder>/<run.path>/<dataset>.scores.json`; `<runs>/<run.path>` holds what was
    measured in training.
    """

    def __init__(self, folder: Path, runs: Path) -> None:
        self.folder, self.runs = Path(folder), Path(runs)
        self._read: dict[Path, Scores] = {}
        self._first: dict[str, Scores] = {}

    def scores(self, run: Run, dataset: str, wanted_by: str) -> Scores:
        """Return a run's scores; error messages name `wanted_by` as the reader."""
        path = self.folder / run.path / f"{dataset}.scores.json"
        if path not in self._read:
            if not path.is_file():
                raise GapinitError(
                    f"{path}: no such file, wanted by {wanted_by}. The scoring rule of the "
                    f"evaluate stage (rules/5_evaluate.smk) makes it: snakemake --cores all {path}"
                )
            scores = read_scores(path)
            first = self._first.setdefault(dataset, scores)
            if scores.sample_ids != first.sample_ids:
                raise GapinitError(
                    f"{path}: expected the {len(first.sample_ids)} {first.samples} of "
                    f"{first.path}, found {len(scores.sample_ids)} {scores.samples} that differ. "
                    "Delete the older file and score again"
                )
            self._read[path] = scores
        return self._read[path]

    def cells(
        self, rows: Sequence[TableRow], experiment: Experiment, metric: str, config: Config, by: str
    ) -> list[RowScores]:
        """Return what each row of an experiment scores, or measures in training, by a metric."""
        found = []
        for row in rows:
            wanted_by = f"{by}, row '{row.id}'"
            if METRICS[metric].of_training:
                scores = [self._training(run, experiment, metric, wanted_by) for run in row.runs]
            else:
                dataset = config.datasets.of(experiment.part(metric))
                scores = [self.scores(run, dataset, wanted_by) for run in row.runs]
            found.append(RowScores(row, tuple(scores)))
        return found

    def _training(self, run: Run, experiment: Experiment, metric: str, wanted_by: str) -> Scores:
        if not run.trained:
            raise GapinitError(
                f"{wanted_by}: '{metric}' is measured in training, and this row trains nothing"
            )
        record, folder = read_run_record(self.runs, run, wanted_by), self.runs / run.path
        value = measure(METRICS[metric].score, folder, record, experiment.target_loss)
        return Scores(folder, {METRICS[metric].score: value}, "runs", (), {})


@dataclass(frozen=True)
class RowScores:
    """The scores of a table's row, one `Scores` a run."""

    row: TableRow
    scores: tuple[Scores, ...]

    @property
    def samples(self) -> str:
        """The kind of sample of every run: `images` or `questions`."""
        return self.scores[0].samples

    @property
    def measured_on(self) -> str:
        """The number of samples as text; empty for what is measured in training."""
        num_samples = len(self.scores[0].sample_ids)
        return f"{num_samples} {self.samples}" if num_samples else ""

    def corpus(self, metric: str) -> NDArray[np.float64]:
        """Return the corpus values of a table's metric, shape (seeds,), in percent."""
        return np.array([scores.metric(METRICS[metric].score) for scores in self.scores])

    def matrix(self, metric: str) -> NDArray[np.float64]:
        """Return scores (seeds, samples), or (seeds, 1) if the metric is no mean over samples."""
        name, corpus = METRICS[metric].score, self.corpus(metric)
        if name in MEANS_OVER_SAMPLES:
            return np.stack([scores.per_sample[name] for scores in self.scores])
        return corpus[:, None]


def paired_differences(first: RowScores, second: RowScores, metric: str) -> NDArray[np.float64]:
    """Return first minus second on shared seeds and samples: (seeds, samples) or (seeds, 1).

    The untrained backbone, which has no seed, is paired with every seed of the other row.
    """
    one, two = first.matrix(metric), second.matrix(metric)
    seeds_one = [run.seed for run in first.row.runs]
    seeds_two = [run.seed for run in second.row.runs]
    if seeds_one == [None] or seeds_two == [None]:
        return one - two
    shared = [seed for seed in seeds_one if seed in seeds_two]
    if not shared:
        raise GapinitError(f"rows '{first.row.id}' and '{second.row.id}' have no seed in common")
    return (
        one[[seeds_one.index(seed) for seed in shared]]
        - two[[seeds_two.index(seed) for seed in shared]]
    )
