"""Read a pretraining folder: images with alt-texts, and a text corpus."""

from __future__ import annotations

from pathlib import Path

from gapinit.data.defects import Defects
from gapinit.data.entries import Images, read_lines, read_text
from gapinit.errors import GapinitError

ALT_TEXT = "alt_text.jsonl"
CORPUS = "corpus.txt"


def read_pretraining(folder: Path, defects: Defects) -> tuple[list[tuple[Path, str]], list[str]]:
    """Return images with their alt-texts, and the texts of the corpus.

    `alt_text.jsonl` has one {"image": name below the folder, "text": ...} a line, `corpus.txt`
    one text a line; empty lines are left out.
    """
    path, images = folder / ALT_TEXT, Images(folder, [""])
    corpus = _corpus(folder / CORPUS)
    pairs = []
    for entry in read_lines(path, defects):
        name, text = entry.file_name("image"), entry.words("text", "caption")
        found = images.find(entry, name)
        if found is not None and text is not None:
            pairs.append((found, text))
    if not pairs and not len(defects):
        raise GapinitError(f"{path}: expected at least 1 line, found none")
    return pairs, corpus


def _corpus(path: Path) -> list[str]:
    text = read_text(path, expected=" (expected in a pretraining folder)")
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    if not lines:
        raise GapinitError(f"{path}: expected at least 1 line, found none")
    return lines
