"""Read fields of untrusted JSON; a missing key or a wrong type is reported as a defect."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import read_json, read_whole
from gapinit.data.defects import Defects, NamedImage
from gapinit.data.locate import find_image, image_number, leaves_root
from gapinit.errors import GapinitError

KINDS = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}
INT64 = 2**63
# Id keys of the formats. Error messages show the id: in a file of one line it locates the entry.
ID_KEYS = ("question_id", "cocoid", "imgid", "sentid", "id")

Seen = dict[tuple[str, int], str]
"""The place of the first entry with each (kind, id) in one file."""


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read an untrusted text file; an unreadable one is an error that names the file."""
    try:
        text = read_whole(path).decode(encoding)
    except UnicodeDecodeError as error:
        raise GapinitError(f"{path}: not valid UTF-8 ({error})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as open() does


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level must be an object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise GapinitError(f"{path}: expected an object at the top level, found {shown(content)}")
    return content


def top_list(content: dict[str, Any], key: str, path: Path) -> list[Any]:
    """Return the list under a required top-level key."""
    if key not in content:
        found = ", ".join(f"'{name}'" for name in list(content)[:8]) or "no keys"
        raise GapinitError(f"{path}: expected the key '{key}' at the top level, found {found}")
    value = content[key]
    if not isinstance(value, list):
        raise GapinitError(f"{path}: '{key}': expected a list, found {shown(value)}")
    return value


class Entry:
    """One JSON object of a file, with its place for error messages."""

    def __init__(self, value: Any, file: Path, place: str, defects: Defects) -> None:
        """Wrap `value`; if it is no object, report a defect and have no fields."""
        self.file, self.place, self.defects = file, place, defects
        self.valid = isinstance(value, dict)
        self.fields: dict[str, Any] = value if self.valid else {}
        if not self.valid:
            defects.add(file, place, f"expected an object, found {shown(value)}")

    def problem(self, text: str) -> None:
        """Report a defect of this entry, with its id if it has one."""
        key = next((key for key in ID_KEYS if isinstance(self.fields.get(key), int | str)), None)
        known_as = f" ({key} {shown(self.fields[key])})" if key else ""
        self.defects.add(self.file, self.place, text + known_as)

    def names_image(self, path: Path, image_id: int | None, split: str) -> None:
        """Record that this entry names an image file."""
        self.defects.images.append(NamedImage(path, self.file, self.place, image_id, split))

    def is_first(self, seen: Seen, kind: str, value: int) -> bool:
        """Record an id and tell whether it is new in its file; a duplicate is a defect."""
        first = seen.setdefault((kind, value), self.place)
        if first != self.place:
            self.problem(f"duplicate {kind} {value}, already used by {first}")
        return first == self.place

    def integer(self, key: str) -> int | None:
        """Return a 64-bit integer, or report the defect and return None."""
        value = self._field(key, int)
        if value is not None and not -INT64 <= value < INT64:
            self.problem(f"'{key}': expected a number of at most 64 bits, found {shown(value)}")
            return None
        return value

    def text(self, key: str) -> str | None:
        """Return a string that UTF-8 can encode, or report the defect and return None."""
        value = self._field(key, str)
        try:
            if value is not None:
                value.encode("utf-8")
        except UnicodeEncodeError:
            self.problem(f"'{key}': expected text, found half of a character pair in {value!a}")
            return None
        return value

    def words(self, key: str, noun: str) -> str | None:
        """Return a text with its white space collapsed, or report the defect and return None.

        Line separators such as U+2028 count as white space: the scorers' PTB tokenizer expects one
        line per caption.
        """
        text = self.text(key)
        if text is None:
            return None
        text = " ".join(text.split())
        if not text:
            self.problem(f"'{key}': the {noun} is empty. Write one or remove the entry.")
            return None
        return text

    def choice(self, key: str, known: Collection[str]) -> str | None:
        """Return one of the known words, or report the defect and return None."""
        text = self.text(key)
        if text is not None and text not in known:
            self.problem(f"'{key}': expected one of {', '.join(known)}, found {shown(text)}")
            return None
        return text

    def file_name(self, key: str) -> str | None:
        """Return a file name, or report the defect and return None."""
        name = self.text(key)
        if name == "":
            self.problem(f"'{key}': expected a file name, found ''")
            return None
        return name

    def items(self, key: str) -> list[Any] | None:
        """Return a list, or report the defect and return None."""
        return self._field(key, list)

    def inner(self, key: str) -> list[Entry] | None:
        """Return the objects of a list as entries, or report the defect and return None."""
        values = self.items(key)
        if values is None:
            return None
        return list(as_entries(values, f"{self.place}.{key}", self.file, self.defects))

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


def as_entries(values: Iterable[Any], place: str, file: Path, defects: Defects) -> Iterator[Entry]:
    """Yield the values of the JSON list at `place` as entries."""
    for number, value in enumerate(values):
        yield Entry(value, file, f"{place}[{number}]", defects)


def read_entries(path: Path, key: str, defects: Defects) -> Iterator[Entry]:
    """Yield the objects of the list under a top-level key; '': the top level is the list."""
    if key:
        values = top_list(read_object(path), key, path)
    elif not isinstance(values := read_json(path), list):
        raise GapinitError(f"{path}: expected a list at the top level, found {shown(values)}")
    yield from as_entries(values, key, path, defects)


def read_lines(path: Path, defects: Defects) -> Iterator[Entry]:
    """Yield the objects of a JSON-lines file; blank lines, a byte-order mark, CRLF are allowed."""
    text = read_text(path, encoding="utf-8-sig")
    if text.lstrip().startswith("[") and isinstance(_parsed(text), list):
        raise GapinitError(f"{path}: expected one JSON object per line, found a list")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        value = _parsed(line)
        if isinstance(value, Exception):
            defects.add(path, f"line {number}", f"not valid JSON ({value})")
        else:
            yield Entry(value, path, f"line {number}", defects)


def _parsed(text: str) -> Any:
    """Return the JSON value of a text, or the parser's error."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return error


def by_id(entries: Iterable[Entry], key: str, kind: str) -> tuple[dict[int, Entry], list[Entry]]:
    """Return the entries by id, and the entries whose id is invalid or a duplicate."""
    seen: Seen = {}
    found, others = {}, []
    for entry in entries:
        value = entry.integer(key)
        if value is not None and entry.is_first(seen, kind, value):
            found[value] = entry
        else:
            others.append(entry)
    return found, others


class Images:
    """The image files of one annotation file; each is looked up once, for its first entry."""

    def __init__(self, root: Path, folders: Sequence[str], split: str = "") -> None:
        """Search `folders` below `root` for images of `split`."""
        self.root, self.folders, self.split = root, folders, split
        self._found: dict[str, Path | None] = {}

    def find(self, entry: Entry, name: str | None) -> Path | None:
        """Return the image file of this name, or report the defect and return None."""
        if name is None:
            return None
        if name not in self._found:
            path = self._found[name] = locate_image(entry, self.root, self.folders, name)
            if path is not None:
                entry.names_image(path, image_number(name), self.split)
        return self._found[name]


def locate_image(
    entry: Entry, root: Path, folders: Sequence[str], name: str, filepath: str = ""
) -> Path | None:
    """Return the image file of this name below the root, or report the defect and return None."""
    for part in (filepath, name):
        if leaves_root(part):
            entry.problem(f"the file name {shown(part)} leaves the image root {root}")
            return None
    path = find_image(root, folders, name)
    if path is None:
        looked = ", ".join(folder or "the root itself" for folder in dict.fromkeys(folders))
        entry.problem(f"names the image {shown(name)}, which is not in {root} (looked in {looked})")
    return path


def shown(value: Any) -> str:
    """Return a short description of a JSON value for an error message."""
    if isinstance(value, dict | list):
        return f"{KINDS[type(value)]} of {len(value)}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and abs(value) >= INT64:
        return "a number of more than 64 bits"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
