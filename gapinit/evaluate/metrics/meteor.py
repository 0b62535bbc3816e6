"""METEOR by its published Java program, which is never waited for longer than a time limit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.java import JavaProcess, java_process

# Measured: 8 to 15 s to load the paraphrase table, then about 3 ms a caption.
SECONDS = 300.0
SECONDS_PER_CAPTION = 0.1
_SEPARATOR = "|||"


@contextmanager
def meteor_process(java: Path, timeout: float) -> Iterator[JavaProcess]:
    """Start METEOR, which loads its tables while the block does other work.

    Same program, flags and memory as pycocoevalcap's wrapper, which is not used itself: when it
    fails, it waits for ever on a lock that it holds.
    """
    from pycocoevalcap.meteor import meteor

    folder = Path(meteor.__file__).parent
    arguments = ["-Xmx2G", "-jar", meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    with java_process(java, arguments, name="METEOR", folder=folder, timeout=timeout) as process:
        yield process


def meteor_scores(
    process: JavaProcess, references: Sequence[Sequence[str]], hypotheses: Sequence[str]
) -> tuple[float, list[float]]:
    """Return METEOR of the corpus and of each hypothesis, in [0, 1].

    The corpus value comes from the summed match statistics, so it is not the mean of the others.
    `references[i]` are the tokenised references of `hypotheses[i]`, at least one each. A
    hypothesis without a word has no match and scores 0. Source: METEOR 1.5 (Denkowski and
    Lavie 2014), in the protocol of the COCO caption evaluation.
    """
    statistics = []
    for alternatives, hypothesis in zip(references, hypotheses, strict=True):
        fields = [_field(reference) for reference in alternatives] + [_field(hypothesis)]
        process.ask(f" {_SEPARATOR} ".join(["SCORE", *fields]))
        statistics.append(process.answer())
        if statistics[-1].startswith("Error"):
            raise GapinitError(f"METEOR: it refused caption {len(statistics)}: {statistics[-1]}")
    process.ask(f" {_SEPARATOR} ".join(["EVAL", *statistics]))
    per_sample = [_number(process.answer()) for _ in statistics]
    return _number(process.answer()), per_sample


def _field(caption: str) -> str:
    """Remove what METEOR's line format takes for its own.

    ASSUME: from references too. The official wrapper does it for hypotheses only, and a
    reference with the separator in it then counts as two.
    """
    return caption.replace(_SEPARATOR, "").replace("  ", " ")


def _number(answer: str) -> float:
    try:
        value = float(answer)
    except ValueError:
        raise GapinitError(f"METEOR: expected a number, found '{answer[:200]}'") from None
    if not math.isfinite(value):
        raise GapinitError(f"METEOR: expected a finite number, found '{answer[:200]}'")
    return value
