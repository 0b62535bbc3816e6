"""Read a pretraining folder: images with alt-texts, and a text corpus."""

from __future__ import annotations

from pathlib import Path

from gapinit.data.defects import Defects
from gapinit.data.entries import clean_caption, file_name, locate_image, read_lines, read_text
from gapinit.errors import GapinitError

ALT_TEXT = "alt_text.jsonl"
CORPUS = "corpus.txt"


def read_alt_text(folder: Path, defects: Defects | None = None) -> list[tuple[Path, str]]:
    """Read `alt_text.jsonl`: one {"image": name below the folder, "text": ...} a line.

    Defects are raised together, or added to `defects` if that is given.
    """
    path = Path(folder) / ALT_TEXT
    noted = Defects() if defects is None else defects
    images: dict[str, Path | None] = {}
    pairs = []
    for entry in read_lines(path, noted):
        name, text = file_name(entry, "image"), clean_caption(entry, "text")
        if name is None:
            continue
        if name not in images:
            images[name] = image = locate_image(entry, folder, [""], name)
            if image is not None:
                entry.names_image(image, None, "")
        found = images[name]
        if found is not None and text is not None:
            pairs.append((found, text))
    if defects is None:
        noted.raise_if_any()
    if not pairs and not len(noted):
        raise GapinitError(f"{path}: expected at least 1 line, found none")
    return pairs


def read_corpus(folder: Path) -> list[str]:
    """Read `corpus.txt`: one text a line, empty lines left out."""
    return _lines(Path(folder) / CORPUS)


def _lines(path: Path) -> list[str]:
    text = read_text(path, expected=" (expected in a pretraining folder)")
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    if not lines:
        raise GapinitError(f"{path}: expected at least 1 line, found none")
    return lines
