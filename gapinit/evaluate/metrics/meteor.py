"""METEOR, computed by its published Java program with a time limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.java import JavaProcess

# Measured: 8 to 15 s to load the paraphrase table, then about 3 ms per caption.
SECONDS = 300.0
SECONDS_PER_CAPTION = 0.1
_SEPARATOR = "|||"


def meteor_process(java: Path, captions: int) -> JavaProcess:
    """Start METEOR for a number of captions; it loads its tables in the background.

    Program, flags and memory are those of pycocoevalcap's wrapper, which is not used because it
    deadlocks on failure.
    """
    from pycocoevalcap.meteor import meteor

    folder = Path(meteor.__file__).parent
    arguments = ["-Xmx2G", "-jar", meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    timeout = SECONDS + SECONDS_PER_CAPTION * captions
    return JavaProcess(java, arguments, name="METEOR", folder=folder, timeout=timeout)


def meteor_scores(
    process: JavaProcess, references: Sequence[Sequence[str]], hypotheses: Sequence[str]
) -> tuple[float, list[float]]:
    """Return METEOR of the corpus and of each hypothesis, in [0, 1].

    The corpus value is computed from the summed match statistics, so it is not the mean of the
    others. `references[i]` are the tokenised references of `hypotheses[i]`, at least one. A
    hypothesis without a word has no match and scores 0. Source: METEOR 1.5 (Denkowski and Lavie
    2014), in the protocol of the COCO caption evaluation.
    """
    statistics = []
    for alternatives, hypothesis in zip(references, hypotheses, strict=True):
        fields = [_field(reference) for reference in alternatives] + [_field(hypothesis)]
        process.ask(f" {_SEPARATOR} ".join(["SCORE", *fields]))
        statistics.append(process.answer())
    process.ask(f" {_SEPARATOR} ".join(["EVAL", *statistics]))
    per_sample = [_number(process.answer()) for _ in statistics]
    return _number(process.answer()), per_sample


def _field(caption: str) -> str:
    """Remove METEOR's field separator from a caption.

    ASSUME: from references, too. The official wrapper does so for hypotheses only, and then a
    reference with the separator counts as two.
    """
    return caption.replace(_SEPARATOR, "").replace("  ", " ")


def _number(answer: str) -> float:
    try:
        value = float(answer)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise GapinitError(f"METEOR: expected a finite number, found '{answer[:200]}'")
    return value
