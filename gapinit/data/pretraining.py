"""Read a pretraining folder: images with alt-texts, and a text corpus."""

from __future__ import annotations

import json
import os
from pathlib import Path

from gapinit.data.defects import Defects
from gapinit.data.entries import Entry, clean_caption
from gapinit.data.locate import leaves_root
from gapinit.errors import GapinitError

ALT_TEXT = "alt_text.jsonl"
CORPUS = "corpus.txt"


def read_alt_text(folder: Path) -> list[tuple[Path, str]]:
    """Read `alt_text.jsonl`: one {"image": name below the folder, "text": ...} a line."""
    path = Path(folder) / ALT_TEXT
    defects = Defects()
    pairs = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            defects.add(path, f"line {number}", "not valid JSON")
            continue
        entry = Entry(value, path, f"line {number}", defects)
        name, text = entry.text("image"), clean_caption(entry, "text")
        if name is None or text is None:
            continue
        image = os.path.join(folder, name)
        if leaves_root(name):
            entry.problem(f"the file name {name!r} leaves the folder {folder}")
        elif not os.path.isfile(image):
            entry.problem(f"names the image {name!r}, which is not in {folder}")
        else:
            pairs.append((Path(image), text))
    defects.raise_if_any()
    return pairs


def read_corpus(folder: Path) -> list[str]:
    """Read `corpus.txt`: one text a line, empty lines left out."""
    return _lines(Path(folder) / CORPUS)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such file (expected in a pretraining folder)") from None
    except UnicodeDecodeError as error:
        raise GapinitError(f"{path}: not valid UTF-8 ({error})") from None
    except OSError as error:
        raise GapinitError(f"{path}: cannot be read ({error.strerror})") from None
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    if not lines:
        raise GapinitError(f"{path}: expected at least 1 line, found none")
    return lines
