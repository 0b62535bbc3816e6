"""Read score files and run records, each once, and line up what is compared.

A row of a table becomes a matrix of scores, seeds x samples: images with captions, or questions.
Files are checked as they are read: all score files of a dataset must hold the same samples, and
per-sample values must average to the corpus value that stands beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gapinit.artifacts.artifacts import read_json
from gapinit.config.configuration import Config
from gapinit.config.experiments import METRICS, Experiment
from gapinit.config.runs import Run, TableRow
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEANS_OVER_SAMPLES = ("CIDEr", "ROUGE_L", "accuracy")
"""Scores whose corpus value is the mean of per-sample values; BLEU, METEOR and F1 are not."""


@dataclass(frozen=True)
class Scores:
    """What one run scored on one dataset, in percent."""

    path: Path
    metrics: dict[str, float]
    samples: str
    """What was scored: `images` or `questions`."""
    sample_ids: tuple[Any, ...]
    per_sample: dict[str, NDArray[np.float64]]
    """By metric of `MEANS_OVER_SAMPLES`, in the order of `sample_ids`."""

    def metric(self, name: str) -> float:
        """Return a corpus value; an error that names the file if it was not scored."""
        if name not in self.metrics:
            raise GapinitError(
                f"{self.path}: metric '{name}' is missing, found: {', '.join(self.metrics)}. "
                "Delete the file and score again with this metric."
            )
        return self.metrics[name]


class ScoreFolder:
    """The score files and run records of one workflow, read at most once each.

    A score file is `<folder>/<run.path>/<dataset>.scores.json`, a record
    `<runs>/<run.path>/run.json` with the step log beside it.
    """

    def __init__(self, folder: Path, runs: Path) -> None:
        self.folder, self.runs = Path(folder), Path(runs)
        self._read: dict[tuple[str, str], Scores] = {}
        self._first: dict[str, Scores] = {}

    def path(self, run: Run, dataset: str) -> Path:
        """Return where a run's scores on a dataset lie."""
        return self.folder / run.path / f"{dataset}.scores.json"

    def scores(self, run: Run, dataset: str, wanted_by: str) -> Scores:
        """Return a run's scores; `wanted_by` says in error messages what asks for them."""
        key = (run.path, dataset)
        if key not in self._read:
            path = self.path(run, dataset)
            if not path.is_file():
                raise GapinitError(
                    f"{path}: no such file, wanted by {wanted_by}. The scoring rule of the "
                    f"evaluate stage (rules/5_evaluate.smk) makes it: snakemake --cores all {path}"
                )
            self._read[key] = self._checked(_read_scores(path), dataset)
        return self._read[key]

    def row(self, row: TableRow, dataset: str, origin: str) -> RowScores:
        """Return the scores of all runs of a table's row."""
        wanted_by = f"{origin}, row '{row.id}'"
        return RowScores(row, tuple(self.scores(run, dataset, wanted_by) for run in row.runs))

    def cells(
        self, rows: Sequence[TableRow], experiment: Experiment, metric: str, config: Config, by: str
    ) -> list[RowScores]:
        """Return what each row of an experiment scores, or measures in training, by a metric."""
        if METRICS[metric].of_training:
            return [self._trainings(row, experiment, metric, by) for row in rows]
        dataset = config.datasets.of(experiment.part(metric))
        return [self.row(row, dataset, by) for row in rows]

    def _trainings(
        self, row: TableRow, experiment: Experiment, metric: str, origin: str
    ) -> RowScores:
        from gapinit.tables.measures import measure

        wanted_by = f"{origin}, row '{row.id}'"
        found = []
        for run in row.runs:
            if not run.trained:
                raise GapinitError(
                    f"{wanted_by}: '{metric}' is measured in training, and this row trains nothing"
                )
            record, folder = read_run_record(self.runs, run, wanted_by), self.runs / run.path
            value = measure(METRICS[metric].score, folder, record, experiment.target_loss)
            found.append(Scores(folder, {METRICS[metric].score: value}, "runs", (), {}))
        return RowScores(row, tuple(found))

    def _checked(self, scores: Scores, dataset: str) -> Scores:
        """Refuse a file whose samples are not those of the files before it."""
        first = self._first.setdefault(dataset, scores)
        if scores.sample_ids != first.sample_ids:
            raise GapinitError(
                f"{scores.path}: expected the {len(first.sample_ids)} {first.samples} of "
                f"{first.path}, found {len(scores.sample_ids)} {scores.samples} that differ. "
                "Delete the older file and score again"
            )
        return scores


@dataclass(frozen=True)
class RowScores:
    """The scores of a table's row, one `Scores` a run."""

    row: TableRow
    scores: tuple[Scores, ...]

    @property
    def num_samples(self) -> int:
        """Number of images or questions that every run was scored on."""
        return len(self.scores[0].sample_ids)

    @property
    def samples(self) -> str:
        """What every run was scored on: `images` or `questions`."""
        return self.scores[0].samples

    @property
    def measured_on(self) -> str:
        """How many samples stand behind the numbers, in words; empty for training measures."""
        return f"{self.num_samples} {self.samples}" if self.num_samples else ""

    def corpus(self, metric: str) -> NDArray[np.float64]:
        """Return the corpus values of a table's metric, shape (seeds,), in percent."""
        return np.array([scores.metric(METRICS[metric].score) for scores in self.scores])

    def matrix(self, metric: str) -> NDArray[np.float64]:
        """Return scores (seeds, samples), or (seeds, 1) if the metric is no mean over samples."""
        name = METRICS[metric].score
        if name in MEANS_OVER_SAMPLES:
            self.corpus(metric)
            return np.stack([scores.per_sample[name] for scores in self.scores])
        return self.corpus(metric)[:, None]


def paired_differences(first: RowScores, second: RowScores, metric: str) -> NDArray[np.float64]:
    """Return first minus second on shared seeds and samples: (seeds, samples) or (seeds, 1).

    A run without a seed (the untrained backbone) is paired with every seed of the other row.
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


_RECORD_TYPES = {
    "versions": (dict, "an object"),
    "inputs": (dict, "an object"),
    "layers": (list, "a list"),
    "command": (list, "a list"),
}


def read_run_record(folder: Path, run: Run, wanted_by: str) -> dict[str, Any]:
    """Return a run's `run.json`, checked to be of this very run; empty for an untrained one.

    What its process took (`process.json` beside it) is added.
    """
    if not run.trained:
        return {}
    path = Path(folder) / run.path / "run.json"
    if not path.is_file():
        raise GapinitError(
            f"{path}: no such file, wanted by {wanted_by}. The training rule (rules/4_train.smk) "
            f"makes it: snakemake --cores all {path}"
        )
    record = read_json(path)
    factors = record.get("factors") if isinstance(record, dict) else None
    if factors != run.factors:
        raise GapinitError(
            f"{path}: expected the record of the run with the factors {run.factors}, found "
            f"{factors}. Delete the run's folder and train again."
        )
    for key, (kind, expected) in _RECORD_TYPES.items():
        if key in record and not isinstance(record[key], kind):
            raise GapinitError(
                f"{path}: key '{key}': expected {expected}, found {record[key]!r}. Delete the "
                "run's folder and train again."
            )
    return record | dict(read_json(path.with_name("process.json")))


def _read_scores(path: Path) -> Scores:
    content = read_json(path)
    try:
        metrics = {str(name): float(value) for name, value in content["metrics"].items()}
        samples = sorted(content["per_sample"], key=lambda sample: str(_sample_id(sample)))
        sample_ids = tuple(_sample_id(sample) for sample in samples)
        num_distinct = len(set(sample_ids))
        what = "questions" if "question_id" in samples[0] else "images"
        per_sample = {
            name: np.array([float(sample[name]) for sample in samples])
            for name in MEANS_OVER_SAMPLES
            if name in metrics
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise GapinitError(
            f"{path}: not a score file, expected 'metrics' and 'per_sample' with an 'image_id' or "
            f"'question_id' and the scores of each ({type(error).__name__}: {error}). "
            "Delete it and score again."
        ) from None
    if not sample_ids or num_distinct != len(sample_ids):
        raise GapinitError(
            f"{path}: expected each sample once in 'per_sample', found {len(sample_ids)} entries "
            f"for {num_distinct} {what}. Delete it and score again."
        )
    for name, values in per_sample.items():
        if not abs(values.mean() - metrics[name]) <= 1e-4:
            raise GapinitError(
                f"{path}: '{name}' is {metrics[name]} in 'metrics', but the mean over 'per_sample' "
                f"is {values.mean()}. Delete it and score again."
            )
    for name, value in metrics.items():
        if not np.isfinite(value):
            raise GapinitError(f"{path}: '{name}' is {value}, expected a finite number")
    return Scores(path, metrics, what, sample_ids, per_sample)


def _sample_id(sample: Mapping[str, Any]) -> Any:
    """Return what tells a sample apart: POPE numbers its questions in each category anew."""
    if "question_id" not in sample:
        return sample["image_id"]
    number = sample["question_id"]
    return f"{sample['category']}/{number}" if sample.get("category") else number
