"""Read fields of untrusted JSON: a missing key or a wrong type becomes a named defect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gapinit.artifacts import read_json
from gapinit.data.defects import Defects
from gapinit.errors import GapinitError

KINDS = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}
INT64 = 2**63


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level must be an object."""
    try:
        content = read_json(path)
    except RecursionError:
        raise GapinitError(f"{path}: not a readable JSON (nested too deeply)") from None
    if not isinstance(content, dict):
        raise GapinitError(f"{path}: expected an object at the top level, found {shown(content)}")
    return content


def top_list(content: dict[str, Any], key: str, path: Path) -> list[Any]:
    """Return the list under a top-level key, which must be there."""
    if key not in content:
        found = ", ".join(f"'{name}'" for name in list(content)[:8]) or "no keys"
        raise GapinitError(f"{path}: expected the key '{key}' at the top level, found {found}")
    value = content[key]
    if not isinstance(value, list):
        raise GapinitError(f"{path}: '{key}': expected a list, found {shown(value)}")
    return value


class Entry:
    """One object in a list of a JSON file, with the words for where it is."""

    def __init__(self, value: Any, file: Path, place: str, defects: Defects) -> None:
        """Wrap `value`; anything but an object is noted as a defect and then has no fields."""
        self.file, self.place, self.defects = file, place, defects
        self.valid = isinstance(value, dict)
        self.fields: dict[str, Any] = value if self.valid else {}
        if not self.valid:
            defects.add(file, place, f"expected an object, found {shown(value)}")

    def problem(self, text: str) -> None:
        """Note a defect of this entry."""
        self.defects.add(self.file, self.place, text)

    def integer(self, key: str) -> int | None:
        """Return a whole number that fits 64 bits, or note the defect and return None."""
        value = self._field(key, int)
        if value is not None and not -INT64 <= value < INT64:
            self.problem(f"'{key}': expected a number of at most 64 bits, found {shown(value)}")
            return None
        return value

    def text(self, key: str) -> str | None:
        """Return a string that can be written as UTF-8, or note the defect and return None."""
        value = self._field(key, str)
        if value is not None and not _encodes(value):
            self.problem(f"'{key}': expected text, found half of a character pair in {value!a}")
            return None
        return value

    def items(self, key: str) -> list[Any] | None:
        """Return a list, or note the defect and return None."""
        return self._field(key, list)

    def _field(self, key: str, kind: type) -> Any:
        if not self.valid:
            return None
        if key not in self.fields:
            self.problem(f"the key '{key}' is missing")
            return None
        value = self.fields[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            self.problem(f"'{key}': expected {KINDS[kind]}, found {shown(value)}")
            return None
        return value


def clean_caption(entry: Entry, key: str) -> str | None:
    """Return a caption with its white space collapsed, or note that it is empty or no text.

    Line separators such as U+2028 count as white space: one line per caption is what the PTB
    tokenizer of the scorers expects.
    """
    text = entry.text(key)
    if text is None:
        return None
    text = " ".join(text.split())
    if not text:
        entry.problem(f"'{key}': the caption is empty. Write one or remove the entry.")
        return None
    return text


def shown(value: Any) -> str:
    """Return a short description of a JSON value for an error message."""
    if isinstance(value, dict | list):
        return f"{KINDS[type(value)]} of {len(value)}"
    if isinstance(value, int) and abs(value) >= INT64:
        return "a number of more than 64 bits"
    text = {None: "null", True: "true", False: "false"}.get(value) if _is_constant(value) else None
    text = text or ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_constant(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
