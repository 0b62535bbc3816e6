"""Read a pretraining folder: images with alt-texts, and a text corpus."""

from __future__ import annotations

from pathlib import Path

from gapinit.data.defects import Defects
from gapinit.data.entries import Images, read_lines, read_text
from gapinit.errors import GapinitError

ALT_TEXT = "alt_text.jsonl"
CORPUS = "corpus.txt"


def read_pretraining(folder: Path, defects: Defects) -> tuple[list[tuple[Path, str]], list[str]]:
    """Return (image, alt-text) pairs and the texts of the corpus.

    `alt_text.jsonl` has one {"image": path relative to the folder, "text": ...} per line,
    `corpus.txt` one text per line. Empty lines are skipped.
    """
    images = Images(folder, [""])
    lines = read_text(folder / CORPUS).split("\n")
    corpus = [stripped for line in lines if (stripped := line.strip())]
    pairs = []
    for entry in read_lines(folder / ALT_TEXT, defects):
        name, text = entry.file_name("image"), entry.words("text", "caption")
        image = images.find(entry, name)
        if image is not None and text is not None:
            pairs.append((image, text))
    for file, found in ((ALT_TEXT, pairs), (CORPUS, corpus)):
        if not found and not defects.found:
            raise GapinitError(f"{folder / file}: expected at least 1 line, found none")
    return pairs, corpus
