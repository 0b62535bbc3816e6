"""CIDEr-D, to the last digit that of the COCO caption evaluation, and several times faster.

The official code looks a logarithm up in NumPy for every n-gram of every caption and goes through
all n-grams of a prediction for each of its references. Here a weight is computed once for each
document frequency, references are prepared once for all predictions, and n-grams that a reference
does not have are left out: they add zero. Every sum has the official terms in the official order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NGRAMS = 4
SIGMA = 6.0

Ngrams = Sequence[Mapping[tuple[str, ...], int]]


class _Caption(NamedTuple):
    """The n-grams of a caption, n = 1 to 4."""

    counts: Ngrams
    """How often each occurs, in the order in which they first do."""
    norms: Sequence[float]
    """Length of the vector of tf-idf weights."""
    bigrams: int
    """What the official code takes for the caption's length."""


class CiderReferences:
    """The references of a set of images, which fix the document frequencies.

    Source: Vedantam et al. 2015 (arXiv 1411.5726), section 4; n = 1 to 4, sigma = 6, as in the
    COCO caption evaluation.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        """Count n-grams in the tokenised references of each image, at least one an image."""
        counted = [[_ngrams(caption) for caption in captions] for captions in references]
        self._frequency: Counter[tuple[str, ...]] = Counter()
        for captions in counted:
            self._frequency.update(
                {ngram for counts in captions for each in counts for ngram in each}
            )
        # NumPy's logarithm, as in the official code: that of `math` may differ in the last digit.
        whole = float(np.log(float(len(references))))
        self._weights = {
            count: whole - float(np.log(max(1.0, float(count))))
            for count in {0, *self._frequency.values()}
        }
        self._squares: dict[tuple[int, int], float] = {}
        self._captions = [[self._prepared(counts) for counts in captions] for captions in counted]

    def score(self, hypotheses: Sequence[str]) -> tuple[float, list[float]]:
        """Return CIDEr of the corpus and of each image's tokenised hypothesis, in [0, 10]."""
        values = [
            self._image(self._prepared(_ngrams(hypothesis)), captions)
            for hypothesis, captions in zip(hypotheses, self._captions, strict=True)
        ]
        return float(np.mean(np.array(values))), values

    def _prepared(self, counts: Ngrams) -> _Caption:
        frequency, squares = self._frequency.get, self._squares
        norms = []
        for each in counts:
            total = 0.0
            for ngram, count in each.items():
                key = (count, frequency(ngram, 0))
                if key not in squares:
                    # NumPy's power for the same reason.
                    squares[key] = float(pow(np.float64(count * self._weights[key[1]]), 2))
                total += squares[key]
            norms.append(math.sqrt(total))
        return _Caption(counts, norms, sum(counts[1].values()))

    def _image(self, hypothesis: _Caption, references: Sequence[_Caption]) -> float:
        weighted = [
            [
                (ngram, count, self._weights[self._frequency.get(ngram, 0)])
                for ngram, count in each.items()
            ]
            for each in hypothesis.counts
        ]
        total: npt.NDArray[np.float64] = np.zeros(NGRAMS)
        for reference in references:
            delta = float(hypothesis.bigrams - reference.bigrams)
            penalty = np.e ** (-(delta**2) / (2 * SIGMA**2))
            cosines = []
            for n, ngrams in enumerate(weighted):
                has = reference.counts[n]
                value = 0.0
                for ngram, count, weight in ngrams:
                    other = has.get(ngram)
                    if other is not None:
                        own, theirs = count * weight, other * weight
                        value += min(own, theirs) * theirs
                if hypothesis.norms[n] != 0 and reference.norms[n] != 0:
                    value /= hypothesis.norms[n] * reference.norms[n]
                cosines.append(value * penalty)
            total += cosines
        score = float(np.mean(total))
        score /= len(references)
        return score * 10.0


def _ngrams(caption: str) -> Ngrams:
    words = caption.split()
    return [
        Counter(zip(*(words[start:] for start in range(n)), strict=False))
        for n in range(1, NGRAMS + 1)
    ]
