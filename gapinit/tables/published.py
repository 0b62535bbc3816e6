"""The numbers that the papers print, and contradictions within a paper.

`config/published/<paper>.csv` holds every result in the paper's tables, `<paper>-text.csv` the
numbers of its text, its project page and notes on it, `<paper>-settings.csv` the table cells that
hold no result, as printed. Columns: the place, its row and metric, the number (the middle of a
printed range), its standard deviation, the number and the row's name as printed, and the
configuration: equal configurations are the same experiment by the paper's own description, so
that two numbers for one configuration contradict each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from gapinit.errors import GapinitError
from gapinit.tables.records import Number, Record, read_records

Text = Annotated[str, Field(min_length=1)]


class PublishedNumber(Record):
    """One number of a paper, as printed and as a value."""

    place: Text
    row: Text
    metric: Text
    value: float
    std: Number
    printed: Text
    printed_row: str
    """The row's name in the paper's table, its parts joined by `|`; empty in running text."""
    configuration: Text


class PublishedSetting(Record):
    """One table cell that holds no result but a setting of the paper's experiments."""

    place: Text
    setting: Text
    column: Text
    printed: Text


class Contradiction(NamedTuple):
    """One configuration and metric for which the sources print different numbers."""

    configuration: str
    metric: str
    numbers: tuple[PublishedNumber, ...]


def published_files(folder: Path, paper: str) -> list[Path]:
    """Return the files of a paper's numbers: those of its tables, and of its text if it exists."""
    text = Path(folder) / f"{paper}-text.csv"
    return [Path(folder) / f"{paper}.csv", *([text] if text.is_file() else [])]


def read_published(path: Path) -> list[PublishedNumber]:
    """Read one file of published numbers.

    Raises GapinitError that names a missing column, a wrong entry, or a second number for one
    place, row and metric.
    """
    numbers = read_records(path, PublishedNumber, "It holds a paper's numbers.")
    seen: set[tuple[str, str, str]] = set()
    for number in numbers:
        key = (number.place, number.row, number.metric)
        if key in seen:
            raise GapinitError(f"{path}: a second number for {', '.join(key)}")
        seen.add(key)
    return numbers


def read_paper(folder: Path, paper: str) -> list[PublishedNumber]:
    """Read every number of a paper, first those of its tables."""
    return [one for path in published_files(folder, paper) for one in read_published(path)]


def read_settings(folder: Path, paper: str) -> list[PublishedSetting]:
    """Read a paper's settings, `<paper>-settings.csv`; empty if there is no such file."""
    path = Path(folder) / f"{paper}-settings.csv"
    return (
        read_records(path, PublishedSetting, "It holds cells of tables.") if path.is_file() else []
    )


def contradictions(numbers: Sequence[PublishedNumber]) -> list[Contradiction]:
    """Return every configuration and metric for which more than one value is printed."""
    groups: dict[tuple[str, str], list[PublishedNumber]] = {}
    for number in numbers:
        groups.setdefault((number.configuration, number.metric), []).append(number)
    return [
        Contradiction(*key, tuple(found))
        for key, found in groups.items()
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
    """Return as text what other places print for the same configuration and metric.

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
