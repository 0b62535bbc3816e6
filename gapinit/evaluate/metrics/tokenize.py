"""Tokenise captions with Stanford's PTB tokenizer, as in the COCO caption evaluation."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.java import JavaProcess

SECONDS = 120.0
SECONDS_PER_CAPTION = 0.005

# The tokenizer ends a line at each of these, not only at \n, which would shift all later captions.
# ASSUME: only these are replaced. The official code replaces only \n; collapsing all white space
# would change correct official tokens ("1  1/2" is two tokens, "1 1/2" is one).
_LINE_BREAKS = re.compile("[\n\r\v\f\u2028\u2029]")


def tokenize_captions(collections: Sequence[Sequence[str]], java: Path) -> list[list[str]]:
    """Return each caption's lower-case PTB tokens without punctuation, joined by spaces.

    Each collection (references, predictions), at least one caption, is one document for the
    tokenizer, with one caption per line. The tokens of a line may depend on the next line, so
    references and predictions have separate documents, and the result depends on the order in a
    collection. One Java process tokenises all documents. Program, flags and removed punctuation
    are those of the COCO caption evaluation server (Chen et al. 2015, section 3). Raises
    GapinitError if Java fails or does not return one line per caption.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    arguments = [
        "-XX:TieredStopAtLevel=1",
        *("-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"),
        *("-preserveLines", "-lowerCase", "-ioFileList", "documents"),
    ]
    timeout = SECONDS + SECONDS_PER_CAPTION * sum(map(len, collections))
    # A temporary folder, since pycocoevalcap would write into site-packages; relative names, since
    # the list of documents is split at white space, which the folder's path may contain.
    with tempfile.TemporaryDirectory(prefix="gapinit-") as name:
        folder = Path(name)
        documents = [folder / f"{number}.txt" for number in range(len(collections))]
        for document, captions in zip(documents, collections, strict=True):
            text = "\n".join(_LINE_BREAKS.sub(" ", caption) for caption in captions)
            document.write_bytes(text.encode("utf-8"))
        listing = "".join(f"{document.name}\t{document.name}.tok\n" for document in documents)
        (folder / "documents").write_text(listing, encoding="utf-8")
        with JavaProcess(
            java, arguments, name="PTB tokenizer", folder=folder, timeout=timeout
        ) as process:
            process.finish()
        return [
            _tokens(Path(f"{document}.tok"), len(captions), ptbtokenizer.PUNCTUATIONS)
            for document, captions in zip(documents, collections, strict=True)
        ]


def _tokens(output: Path, count: int, punctuation: Sequence[str]) -> list[str]:
    """Read one tokenised document of `count` captions and drop the punctuation tokens."""
    lines = output.read_bytes().decode("utf-8").split("\n") if output.is_file() else []
    if len(lines) != count:
        raise GapinitError(
            f"PTB tokenizer: expected {count} lines for {count} captions, found {len(lines)}. "
            "Is the program Java, or does a caption contain a character that it reads as a line "
            "break?"
        )
    removed = frozenset(punctuation)
    return [
        " ".join(token for token in line.rstrip().split(" ") if token not in removed)
        for line in lines
    ]
