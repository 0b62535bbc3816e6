"""Read entries of prediction and reference files, their ids and texts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import read_json
from gapinit.data.entries import shown
from gapinit.errors import GapinitError

EntryId = int | str

# Half of a UTF-16 pair: valid in JSON, but not in UTF-8.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def entry_id(entry: Any, key: str, place: str) -> EntryId:
    """Return an id, a number or text; `place` names the entry in error messages."""
    value = _field(entry, key, place)
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, float) and value.is_integer():
        return int(value)  # pandas writes ids as floats if some are missing
    if isinstance(value, bool) or not isinstance(value, int):
        raise GapinitError(f"{place}: '{key}': expected a number or text, found {shown(value)}")
    return value


def entry_text(entry: Any, key: str, place: str) -> str:
    """Return a text; `place` names the entry in error messages."""
    value = _field(entry, key, place)
    if not isinstance(value, str):
        raise GapinitError(f"{place}: '{key}': expected text, found {shown(value)}")
    return _LONE_SURROGATE.sub("\ufffd", value)


def entry_list(entry: Any, key: str, place: str) -> list[Any]:
    """Return a list; `place` names the entry in error messages."""
    value = _field(entry, key, place)
    if not isinstance(value, list):
        raise GapinitError(f"{place}: '{key}': expected a list, found {shown(value)}")
    return value


def _field(entry: Any, key: str, place: str) -> Any:
    if not isinstance(entry, dict):
        raise GapinitError(f"{place}: expected an object, found {shown(entry)}")
    if key not in entry:
        found = ", ".join(f"'{name}'" for name in list(entry)[:8]) or "no keys"
        raise GapinitError(f"{place}: expected the key '{key}', found {found}")
    return entry[key]


def examples(ids: Iterable[EntryId]) -> str:
    """Return the first three ids, for an error message."""
    return ", ".join(repr(value) for value in list(ids)[:3])


class KnownIds:
    """The ids in a file. They match across types: 7 matches "7"."""

    def __init__(self, ids: Iterable[EntryId], path: Path) -> None:
        self._ids = dict.fromkeys(ids)
        self._by_text = {str(value): value for value in self._ids}
        self._path = path

    def require(self, value: EntryId, place: str) -> EntryId:
        """Return the id that `value` matches, preferably of its type; else raise GapinitError."""
        found = value if value in self._ids else self._by_text.get(str(value))
        if found is None:
            raise GapinitError(
                f"{place}: not in {self._path}, which has {len(self._ids)} ids (such as "
                f"{examples(self._ids)}). Do the two files belong to the same dataset?"
            )
        return found


def read_results(path: Path, id_key: str, text_key: str, known: KnownIds) -> dict[EntryId, str]:
    """Read predictions in a benchmark's result format, a list of {id_key, text_key}.

    Returns the texts by their ids in `known`. A text may be empty.
    Raises GapinitError for an id that is unknown or repeated.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise GapinitError(f"{path}: expected a list at the top level, found {shown(content)}")
    found: dict[EntryId, str] = {}
    for number, entry in enumerate(content):
        place = f"{path}: entry {number}"
        given = entry_id(entry, id_key, place)
        place += f" ({id_key} {given!r})"
        text = entry_text(entry, text_key, place)
        meant = known.require(given, place)
        if meant in found:
            raise GapinitError(f"{place}: a second prediction; expected one per {id_key}")
        found[meant] = text
    if not found:
        raise GapinitError(f"{path}: expected predictions, found none")
    return found
