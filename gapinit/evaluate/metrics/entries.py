"""Ids and texts of the entries of question and answer files; a wrong one is an error by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from gapinit.data.entries import shown
from gapinit.errors import GapinitError

EntryId = int | str

# Half of a UTF-16 pair: legal in JSON, but no UTF-8 file can hold it.
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def entry_id(entry: Any, key: str, place: str) -> EntryId:
    """Return an id, which is a number or text; `place` says in errors where the entry is."""
    value = _field(entry, key, place)
    if isinstance(value, str):
        return LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, float) and value.is_integer():
        return int(value)  # what tables make of a column of ids
    if isinstance(value, bool) or not isinstance(value, int):
        raise GapinitError(f"{place}: '{key}': expected a number or text, found {shown(value)}")
    return value


def entry_text(entry: Any, key: str, place: str) -> str:
    """Return a text; `place` says in errors where the entry is."""
    value = _field(entry, key, place)
    if not isinstance(value, str):
        raise GapinitError(f"{place}: '{key}': expected text, found {shown(value)}")
    return LONE_SURROGATE.sub("\ufffd", value)


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


class IdIndex:
    """The ids of one file, found also where another file has text for a number or the reverse."""

    def __init__(self, ids: Iterable[EntryId]) -> None:
        self._ids = set(ids)
        self._by_text = {str(value): value for value in self._ids}

    def find(self, value: EntryId) -> EntryId | None:
        """Return the id that is meant, or None. An id of the same type goes first."""
        return value if value in self._ids else self._by_text.get(str(value))
