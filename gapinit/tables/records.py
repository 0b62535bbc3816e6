"""The CSV files of stage 6, one model a table: each field of the model is a column of its file.

One model writes and reads a table, and figures and the report read the files that a user reads, so
no number can differ between them. Plain `csv` instead of pandas keeps the start fast.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from gapinit.artifacts.artifacts import atomic_file, read_json
from gapinit.artifacts.digests import require_unaltered
from gapinit.config.configuration import Config
from gapinit.config.runs import Run
from gapinit.config.yaml_files import check_settings
from gapinit.errors import GapinitError
from gapinit.tables.statistics import Interval, small_sample_note


class Record(BaseModel):
    """One line of a CSV file."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


AnyRecord = TypeVar("AnyRecord", bound=Record)


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


def _split(value: Any) -> Any:
    return tuple(part for part in value.split(";") if part) if isinstance(value, str) else value


def _run(value: Any) -> Run:
    try:
        return value if isinstance(value, Run) else Run.parse(value)
    except GapinitError:
        raise ValueError("the path of a run") from None


def _path(value: Any) -> str:
    return _run(value).path


Number = Annotated[float | None, BeforeValidator(_empty_is_none)]
"""A finite number; None is an empty entry."""
Count = Annotated[int | None, BeforeValidator(_empty_is_none)]
Joined = Annotated[tuple[str, ...], BeforeValidator(_split), PlainSerializer(";".join)]
"""A list, joined by semicolons in the file."""
RunPaths = Annotated[
    tuple[Annotated[str, BeforeValidator(_path)], ...],
    BeforeValidator(_split),
    PlainSerializer(";".join),
]
RunOfPath = Annotated[Run, BeforeValidator(_run), PlainSerializer(attrgetter("path"))]
Verdict = Literal["holds", "does not hold", "undecided"]


class Measurement(Record):
    """One cell of a table: a row, a metric, the published number and the measured one."""

    table: str
    row: str
    label: str
    metric: str
    published: Number = None
    published_std: Number = None
    measured: float
    std: Number
    """Sample standard deviation over seeds; None for one seed."""
    n_seeds: int
    interval_low: Number
    interval_high: Number
    interval_over: str
    difference: Number = None
    """Measured minus published."""
    vs_reference: Number = None
    """This row minus the reference row, on the same images and seeds; None for that row."""
    vs_reference_low: Number = None
    vs_reference_high: Number = None
    p_value: Number = None
    p_holm: Number = None
    p_over: str = ""
    runs: RunPaths
    note: str = ""

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of `measured`."""
        return _interval(self.interval_low, self.interval_high)

    @property
    def vs_reference_interval(self) -> Interval | None:
        """The 95 % interval of `vs_reference`."""
        return _interval(self.vs_reference_low, self.vs_reference_high)


class ClaimResult(Record):
    """A claim of the paper with its numbers and verdict."""

    table: str
    text: str
    claim: str
    """The same as an expression over the rows."""
    question: str
    """The question that several claims answer together; empty if there is none."""
    metric: str
    statistic: str
    """`mean`, or `std`: then `difference` is the ratio of the two standard deviations."""
    better: str
    worse: str
    margin: float
    better_value: Number
    worse_value: Number
    difference: Number
    low: Number
    high: Number
    interval_over: str
    verdict: Verdict
    n: str

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of `difference`."""
        return _interval(self.low, self.high)


class RunResult(Record):
    """One line of the tidy table of runs: a run, a dataset of its evaluation, a metric.

    The file also holds the factors of the run, each in a column, which its path spells.
    """

    run: RunOfPath
    evaluated: str
    metric: str
    value: float
    tables: Joined
    trainable_parameters: Count
    first_grad_norm: Number
    final_loss: Number
    noise_cosine: Number


def _interval(low: float | None, high: float | None) -> Interval | None:
    return None if low is None or high is None else Interval(low, high)


def few_seeds(measurements: Iterable[Measurement]) -> str:
    """Say what the seeds of the trained rows cannot show; empty where there are many seeds."""
    numbers = {
        line.n_seeds for line in measurements if any(Run.parse(path).trained for path in line.runs)
    }
    return " ".join(filter(None, map(small_sample_note, sorted(numbers))))


def write_csv(path: Path, columns: Iterable[str], lines: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file whole or not at all; None is an empty entry, numbers keep every digit."""
    with (
        atomic_file(Path(path)) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(lines)


def write_records(path: Path, model: type[AnyRecord], records: Sequence[AnyRecord]) -> None:
    """Write records as a CSV file, a column a field."""
    lines = (record.model_dump().values() for record in records)
    write_csv(path, model.model_fields, lines)


def read_records(
    path: Path, model: type[AnyRecord], advice: str = "Make the tables again."
) -> list[AnyRecord]:
    """Read a CSV file whose header must hold every field of `model`; other columns are ignored.

    Raises GapinitError that names file, line, column, what was expected and what was found, and
    ends with `advice`.
    """
    path = Path(path)
    try:
        require_unaltered(path)
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in model.model_fields if name not in (reader.fieldnames or ())]
            if missing:
                raise GapinitError(
                    f"{path}: expected the columns {', '.join(model.model_fields)}; not found: "
                    f"{', '.join(missing)}. {advice}"
                )
            return [
                _checked(entries, model, f"{path}: line {reader.line_num}", advice)
                for entries in reader
            ]
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such file. {advice}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise GapinitError(f"{path}: not a readable CSV file ({error}). {advice}") from None


_EXPECTED = {
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "int_parsing": "a whole number",
    "string_type": "text",
    "string_too_short": "text",
}


def _checked(entries: Any, model: type[AnyRecord], origin: str, advice: str) -> AnyRecord:
    try:
        return model.model_validate(entries)
    except ValidationError as error:
        problem = error.errors()[0]
        expected = _EXPECTED.get(problem["type"]) or problem.get("ctx", {}).get("expected")
        expected = expected or problem["msg"].removeprefix("Value error, ")
        raise GapinitError(
            f"{origin}, column '{problem['loc'][0]}': expected {expected}, found "
            f"{problem['input']!r}. {advice}"
        ) from None


def read_table(path: Path) -> list[Measurement]:
    """Read one table, `6_tables/<table>.csv`; a table without a line is an error."""
    measurements = read_records(path, Measurement)
    if not measurements:
        raise GapinitError(f"{path}: expected at least one row, found none. Make the table again.")
    return measurements


def read_claims(path: Path) -> list[ClaimResult]:
    """Read `claims.csv`; experiments without claims give an empty list."""
    return read_records(path, ClaimResult)


def read_runs(path: Path) -> list[RunResult]:
    """Read the tidy table of runs, `6_tables/runs.csv`."""
    return read_records(path, RunResult)


def read_configuration(path: Path) -> Config:
    """Read a checked configuration, JSON."""
    return check_settings(read_json(path), Config, str(path))
