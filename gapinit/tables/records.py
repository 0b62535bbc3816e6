"""The result files of stage 6: one model per table, for those that write it and those that read it.

Figures and the report read the very CSV files that a user reads, so no number can differ between
them. The columns of a file are the fields of its model, in this order. Plain `csv`, no pandas: a
report starts in a fraction of a second.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from gapinit.artifacts.digests import require_unaltered
from gapinit.config.runs import Run
from gapinit.errors import GapinitError


class Interval(NamedTuple):
    """A closed interval of values, in the units of the metric."""

    low: float
    high: float


def _empty_is_none(text: Any) -> Any:
    return None if isinstance(text, str) and text.lower() in ("", "nan", "none") else text


def _parts(text: Any) -> Any:
    return tuple(part.strip() for part in text.split(";") if part.strip())


def _run(path: Any) -> Any:
    try:
        return Run.parse(path)
    except GapinitError:
        raise ValueError("the path of a run") from None


def _runs(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_run(path).path for path in paths)


Number = Annotated[float | None, BeforeValidator(_empty_is_none)]
Integer = Annotated[int | None, BeforeValidator(_empty_is_none)]
Parts = Annotated[tuple[str, ...], BeforeValidator(_parts)]
RunPaths = Annotated[tuple[str, ...], BeforeValidator(_parts), AfterValidator(_runs)]


class Record(BaseModel):
    """One line of a CSV file; columns that the model does not have are ignored."""

    model_config = ConfigDict(
        frozen=True, allow_inf_nan=False, str_strip_whitespace=True, arbitrary_types_allowed=True
    )

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """Return the file's columns."""
        return tuple(str(field.alias or name) for name, field in cls.model_fields.items())


class Measurement(Record):
    """One cell of a table: a row, a metric, the published number and ours."""

    table: str
    row: str
    label: str
    metric: str
    published: Number
    published_std: Number
    measured: float
    std: Number
    n_seeds: int
    interval_low: Number
    interval_high: Number
    interval_over: str
    difference: Number
    """Measured minus published."""
    vs_reference: Number
    """This row minus the reference row, on the same images and seeds; None for that row."""
    vs_reference_low: Number
    vs_reference_high: Number
    p_value: Number
    p_holm: Number
    p_over: str
    """`images`, `questions` or `seeds`: what the p-value is over."""
    runs: RunPaths
    note: str

    @property
    def interval(self) -> Interval | None:
        """The interval of `measured`."""
        return _interval(self.interval_low, self.interval_high)

    @property
    def vs_reference_interval(self) -> Interval | None:
        """The interval of `vs_reference`."""
        return _interval(self.vs_reference_low, self.vs_reference_high)


class ClaimResult(Record):
    """A statement of the paper, and what the numbers say about it."""

    table: str
    text: str
    claim: str
    """The same as an expression over the rows."""
    question: str
    """The question that it helps to answer; empty if it stands alone."""
    metric: str
    statistic: str
    """`mean`, or `std`: then `difference` is the ratio of the two standard deviations."""
    better: str
    worse: str
    margin: Number
    better_value: Number
    worse_value: Number
    difference: Number
    low: Number
    high: Number
    interval_over: str
    verdict: str
    n: str

    @property
    def interval(self) -> Interval | None:
        """The interval of `difference`."""
        return _interval(self.low, self.high)


class RunMeasures(Record):
    """What the tidy table of runs takes from `run.json`; empty for the untrained backbone."""

    trainable_parameters: Integer
    first_grad_norm: Number
    final_loss: Number
    noise_cosine: Number


class RunResult(RunMeasures):
    """One line of the tidy table of runs: a run, a dataset it was evaluated on, a metric.

    The file also holds the factors of the run, one column each.
    """

    run: Annotated[Run, BeforeValidator(_run)]
    dataset: str = Field(alias="evaluated")
    metric: str
    value: float
    tables: Parts


Model = TypeVar("Model", bound=Record)
MAKE_AGAIN = "Make the tables again"
_EXPECTED = {
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "string_too_short": "some text",
}


def _interval(low: float | None, high: float | None) -> Interval | None:
    return None if low is None or high is None else Interval(low, high)


def read_table(path: Path) -> list[Measurement]:
    """Read one table, `6_tables/<table>.csv`; a table without a line is an error."""
    require_unaltered(path)
    measurements = read_records(path, Measurement, MAKE_AGAIN)
    if not measurements:
        raise GapinitError(f"{path}: expected at least one row, found none. {MAKE_AGAIN}.")
    return measurements


def read_claims(path: Path) -> list[ClaimResult]:
    """Read `claims.csv`; a file without claims is valid."""
    require_unaltered(path)
    return read_records(path, ClaimResult, MAKE_AGAIN)


def read_runs(path: Path) -> list[RunResult]:
    """Read the tidy table of runs, `6_tables/runs.csv`."""
    require_unaltered(path)
    return read_records(path, RunResult, MAKE_AGAIN)


def read_records(path: Path, model: type[Model], advice: str) -> list[Model]:
    """Read each line of a CSV file as `model`; errors name file, line, column, and give advice."""
    path = Path(path)
    columns = model.columns()
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise GapinitError(
                    f"{path}: expected the columns {', '.join(columns)}; not found: "
                    f"{', '.join(missing)}. {advice}."
                )
            return [
                _line(f"{path}: line {reader.line_num}", entries, model, advice)
                for entries in reader
            ]
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such file. {advice}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise GapinitError(f"{path}: not a readable CSV file ({error})") from None


def _line(place: str, entries: dict[str, str | None], model: type[Model], advice: str) -> Model:
    try:
        return model.model_validate({name: text or "" for name, text in entries.items()})
    except ValidationError as error:
        problem = error.errors()[0]
        column = str(problem["loc"][0])
        expected = _EXPECTED.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        raise GapinitError(
            f"{place}, column '{column}': expected {expected}, found '{entries[column] or ''}'. "
            f"{advice}."
        ) from None
