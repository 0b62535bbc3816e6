"""The numbers that the papers print, and where one paper prints several for one configuration.

`config/published/<paper>.csv` holds every result in the paper's tables, `<paper>-text.csv` what its
text, its project page and notes on it say, `<paper>-settings.csv` the cells of tables that hold no
result, as printed. Columns: the place, the row and metric within it, the number (of a printed range
its middle), its standard deviation, the number and the row's name as printed, and the configuration
that it belongs to: equal configurations are the same experiment by the paper's own description, so
that two numbers for one configuration contradict each other.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from gapinit.errors import GapinitError


@dataclass(frozen=True)
class PublishedNumber:
    """One number of a paper, as printed and as a value."""

    place: str
    row: str
    metric: str
    value: float
    std: float | None
    printed: str
    printed_row: str
    """The row's name in the paper's table, its parts joined by `|`; empty in running text."""
    configuration: str


@dataclass(frozen=True)
class PublishedSetting:
    """One cell of a table that holds no result: what the paper says it did."""

    place: str
    setting: str
    column: str
    printed: str


@dataclass(frozen=True)
class Contradiction:
    """One configuration and metric for which the sources print different numbers."""

    configuration: str
    metric: str
    numbers: tuple[PublishedNumber, ...]


COLUMNS = tuple(field.name for field in fields(PublishedNumber))


def published_files(folder: Path, paper: str) -> list[Path]:
    """Return the files that hold a paper's numbers: its tables, and its text if there is one."""
    text = Path(folder) / f"{paper}-text.csv"
    return [Path(folder) / f"{paper}.csv", *([text] if text.is_file() else [])]


def read_published(path: Path) -> list[PublishedNumber]:
    """Read one file of published numbers; a malformed line is an error that names it.

    Raises GapinitError on wrong columns, on a value that is no number, on an empty entry where
    one is needed, and on two numbers for one place, row and metric.
    """
    path = Path(path)
    numbers: list[PublishedNumber] = []
    seen: set[tuple[str, str, str]] = set()
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise GapinitError(
                    f"{path}: expected the columns {', '.join(COLUMNS)}, "
                    f"found {', '.join(reader.fieldnames or ()) or 'none'}"
                )
            for entry in reader:
                number = _number(entry, f"{path}, line {reader.line_num}")
                key = (number.place, number.row, number.metric)
                if key in seen:
                    raise GapinitError(
                        f"{path}, line {reader.line_num}: a second number for {', '.join(key)}"
                    )
                seen.add(key)
                numbers.append(number)
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such file (published numbers of a paper)") from None
    except UnicodeDecodeError as error:
        raise GapinitError(f"{path}: not UTF-8 text ({error.reason})") from None
    return numbers


def read_settings(folder: Path, paper: str) -> list[PublishedSetting]:
    """Read what a paper says it did, `<paper>-settings.csv`; empty if there is no such file.

    Raises GapinitError on wrong columns or an empty entry.
    """
    path = Path(folder) / f"{paper}-settings.csv"
    if not path.is_file():
        return []
    columns = tuple(field.name for field in fields(PublishedSetting))
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        if tuple(reader.fieldnames or ()) != columns:
            raise GapinitError(f"{path}: expected the columns {', '.join(columns)}")
        settings = [PublishedSetting(**entry) for entry in reader]
    for line, setting in enumerate(settings, start=2):
        if not all((setting.place, setting.setting, setting.column, setting.printed)):
            raise GapinitError(f"{path}, line {line}: an entry is empty")
    return settings


def contradictions(numbers: Sequence[PublishedNumber]) -> list[Contradiction]:
    """Return every configuration and metric that is printed with more than one value."""
    groups: dict[tuple[str, str], list[PublishedNumber]] = {}
    for number in numbers:
        groups.setdefault((number.configuration, number.metric), []).append(number)
    return [
        Contradiction(configuration, metric, tuple(found))
        for (configuration, metric), found in groups.items()
        if len({number.value for number in found}) > 1
    ]


def find(
    numbers: Sequence[PublishedNumber], place: str, row: str, metric: str, origin: str
) -> PublishedNumber | None:
    """Return the number that a place prints for a row and metric, or None if it prints none.

    A row that the place does not have at all is an error: it is a misspelt name.
    """
    of_place = [number for number in numbers if number.place == place]
    of_row = [number for number in of_place if number.row == row]
    if not of_row:
        known = ", ".join(dict.fromkeys(number.row for number in of_place)) or "none"
        raise GapinitError(
            f"{origin}: key 'published': no row '{row}' at '{place}' among the published numbers, "
            f"expected one of: {known}"
        )
    return next((number for number in of_row if number.metric == metric), None)


def elsewhere(numbers: Sequence[PublishedNumber], number: PublishedNumber) -> str:
    """Return, in words, what other places print for the same configuration and metric.

    Empty if no value differs. Places that print the same value are named together.
    """
    others: dict[float, list[PublishedNumber]] = {}
    for other in numbers:
        same = (other.configuration, other.metric) == (number.configuration, number.metric)
        if same and other.value != number.value:
            others.setdefault(other.value, []).append(other)
    if not others:
        return ""
    listed = "; ".join(
        f"{found[0].printed} ({', '.join(dict.fromkeys(other.place for other in found))})"
        for found in others.values()
    )
    return f"printed elsewhere for the same configuration: {listed}"


def _number(entry: dict[str, str], origin: str) -> PublishedNumber:
    for column in ("place", "row", "metric", "value", "printed", "configuration"):
        if not (entry.get(column) or "").strip():
            raise GapinitError(f"{origin}: column '{column}' is empty")
    return PublishedNumber(
        place=entry["place"],
        row=entry["row"],
        metric=entry["metric"],
        value=_float(entry["value"], "value", origin),
        std=_float(entry["std"], "std", origin) if entry["std"] else None,
        printed=entry["printed"],
        printed_row=entry["printed_row"] or "",
        configuration=entry["configuration"],
    )


def _float(text: str, column: str, origin: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise GapinitError(f"{origin}: column '{column}': expected a number, found '{text}'")
    return value
