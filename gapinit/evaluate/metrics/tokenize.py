"""Tokenise captions as the COCO caption evaluation does: Stanford's PTB tokenizer."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.java import java_process

SECONDS = 120.0
SECONDS_PER_CAPTION = 0.005

# Besides \n these end a line for the tokenizer, which would shift every later caption by one.
# ASSUME: only these are replaced. The official code replaces \n alone; collapsing all white space
# would change tokens where the official result is sound ("1  1/2" is two tokens, "1 1/2" is one).
_LINE_BREAKS = re.compile("[\n\r\v\f\u2028\u2029]")


def tokenize_captions(
    collections: Sequence[Sequence[str]], java: Path, timeout: float | None = None
) -> list[list[str]]:
    """Return every caption as its lower-case PTB tokens without punctuation, joined by spaces.

    Each collection (references, predictions) is one document to the tokenizer, with one caption
    a line: what a line becomes may depend on the line after it, hence references and predictions
    never share a document, and the order within a collection is part of the result. All of them
    are tokenised by one start of Java. Same program, flags and removed punctuation as in the
    COCO caption evaluation server (Chen et al. 2015, section 3). Raises GapinitError when Java
    fails or does not return one line for each caption.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    documents = {f"{number}.txt": captions for number, captions in enumerate(collections)}
    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    if timeout is None:
        timeout = SECONDS + SECONDS_PER_CAPTION * sum(map(len, collections))
    arguments = [
        "-XX:TieredStopAtLevel=1",
        *("-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"),
        *("-preserveLines", "-lowerCase", "-ioFileList", "documents"),
    ]
    # A private folder with relative names: pycocoevalcap writes into site-packages, and the
    # list of documents is split at white space, which the temporary folder's path may contain.
    with tempfile.TemporaryDirectory(prefix="gapinit-") as name:
        folder = Path(name)
        for document, captions in documents.items():
            text = "\n".join(_LINE_BREAKS.sub(" ", caption) for caption in captions)
            (folder / document).write_bytes(text.encode("utf-8"))
        listing = "".join(f"{document}\t{document}.tok\n" for document in documents)
        (folder / "documents").write_text(listing, encoding="utf-8")
        with java_process(
            java, arguments, name="PTB tokenizer", folder=folder, timeout=timeout
        ) as process:
            process.finish()
        return [
            _tokens(folder / f"{document}.tok", len(captions), ptbtokenizer.PUNCTUATIONS)
            for document, captions in documents.items()
        ]


def _tokens(output: Path, count: int, punctuation: Sequence[str]) -> list[str]:
    """Read one tokenised document of `count` captions and drop the punctuation tokens."""
    if count == 0:
        return []
    try:
        lines = output.read_bytes().decode("utf-8").split("\n")
    except FileNotFoundError:
        raise GapinitError("PTB tokenizer: it ended without an output; is this a Java?") from None
    if len(lines) != count:
        raise GapinitError(
            f"PTB tokenizer: expected {count} lines for {count} captions, found {len(lines)}. "
            "A caption holds a character that this Java takes for a line break."
        )
    removed = frozenset(punctuation)
    return [
        " ".join(token for token in line.rstrip().split(" ") if token not in removed)
        for line in lines
    ]
