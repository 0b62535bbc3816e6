"""CIDEr-D, equal to the COCO caption evaluation's to the last digit, and many times faster.

The official code calls a NumPy logarithm for every n-gram of every caption and loops over all
n-grams of a prediction for each reference. Here n-grams are integers, all captions are weighted and
compared at once, and references are prepared once for all predictions. Every sum has the official
terms in the official order: `np.bincount` adds the weights in sequence, and n-grams that are not in
a reference add zero. As in the official code, NumPy computes logarithms and powers of single
numbers: those of whole arrays may differ in the last digit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NGRAMS = 4
SIGMA = 6.0
_WORDS = np.int64(1 << 31)
"""Above the number of words and n-grams; combines an n-gram and its next word into one integer."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class _Vectors(NamedTuple):
    """The n-grams of one length in all captions, once per caption, in order of first use."""

    caption: Ints
    ngram: Ints
    weight: Floats
    """tf * idf."""
    norm: Floats
    """(captions,): norm of each caption's vector."""


class CiderReferences:
    """The references of a set of images, which determine the document frequencies.

    Source: Vedantam et al. 2015 (arXiv 1411.5726), section 4; n = 1 to 4, sigma = 6, as in the
    COCO caption evaluation.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        """Count n-grams in the tokenised references of each image, at least one per image."""
        self._sizes = np.array([len(captions) for captions in references])
        self._image = np.repeat(np.arange(len(references)), self._sizes)
        self._log_images = np.log(float(len(references)))
        self._words: dict[str, int] = {}
        self._keys: list[Ints] = []
        """For each n, the sorted integers of the references' n-grams."""
        self._frequency: list[Ints] = []
        captions = [caption for group in references for caption in group]
        self._vectors, self._length = self._weigh(captions)
        self._places = [
            vectors.caption * len(frequency) + vectors.ngram
            for vectors, frequency in zip(self._vectors, self._frequency, strict=True)
        ]
        self._order = [np.argsort(places) for places in self._places]

    def score(self, hypotheses: Sequence[str]) -> tuple[float, list[float]]:
        """Return CIDEr of the corpus and of each image's tokenised hypothesis, in [0, 10]."""
        vectors, length = self._weigh(hypotheses)
        delta = (length[self._image] - self._length).tolist()
        penalty = {value: np.e ** (-(float(value) ** 2) / (2 * SIGMA**2)) for value in set(delta)}
        penalties = np.array([penalty[value] for value in delta])
        total = np.empty((len(hypotheses), NGRAMS))
        for n in range(NGRAMS):
            cosine = self._products(n, vectors[n])
            norms = vectors[n].norm[self._image] * self._vectors[n].norm
            np.divide(cosine, norms, out=cosine, where=norms != 0)
            total[:, n] = np.bincount(self._image, cosine * penalties, len(hypotheses))
        # One mean per row: for a whole array NumPy adds the columns in another order.
        values = [
            float(np.mean(row)) / size * 10.0
            for row, size in zip(total, self._sizes.tolist(), strict=True)
        ]
        return float(np.mean(np.array(values))), values

    def _products(self, n: int, hypotheses: _Vectors) -> Floats:
        """Return each reference's clipped inner product with the hypothesis, (captions,)."""
        known = hypotheses.ngram < len(self._frequency[n])
        image, ngram, weight = (part[known] for part in hypotheses[:3])
        # Pair every n-gram of a hypothesis with every reference of its image.
        sizes = self._sizes[image]
        first = self._sizes.cumsum() - self._sizes
        within = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
        caption = np.repeat(first[image], sizes) + within
        wanted = caption * len(self._frequency[n]) + np.repeat(ngram, sizes)
        place, met = _find(self._places[n][self._order[n]], wanted)
        theirs = self._vectors[n].weight[self._order[n][place[met]]]
        own = np.repeat(weight, sizes)[met]
        products = np.bincount(caption[met], np.minimum(own, theirs) * theirs, len(self._image))
        return products.astype(np.float64, copy=False)  # empty input gives integers

    def _weigh(self, captions: Sequence[str]) -> tuple[list[_Vectors], Ints]:
        """Return the vectors of captions for each n, and the captions' numbers of word pairs.

        The first call, with the references, numbers words and n-grams.
        """
        split = [caption.split() for caption in captions]
        sizes = np.array([len(words) for words in split])
        for word in dict.fromkeys(chain.from_iterable(split)):
            self._words.setdefault(word, len(self._words))
        numbered: Iterable[int] = map(self._words.__getitem__, chain.from_iterable(split))
        words = np.fromiter(numbered, np.int64, sizes.sum())
        owner = np.repeat(np.arange(len(captions)), sizes)
        vectors, ngram = [], np.zeros_like(words)
        length = np.zeros(len(captions), np.int64)
        for n in range(NGRAMS):
            # An n-gram is an (n-1)-gram and the next word of the same caption.
            start = np.flatnonzero(owner[: max(len(owner) - n, 0)] == owner[n:])
            keys = ngram[start] * _WORDS + words[start + n]
            found = self._numbered(n, keys, owner[start])
            ngram = np.full(len(words), -1)
            ngram[start] = found
            vectors.append(self._vector(n, owner[start], found, len(captions)))
            if n == 1:  # the official length is the number of word pairs
                length = np.bincount(owner[start], minlength=len(captions))
        return vectors, length

    def _numbered(self, n: int, keys: Ints, caption: Ints) -> Ints:
        """Return the integer of each n-gram; n-grams that are not in a reference come last."""
        if len(self._keys) == n:
            known, numbers = np.unique(keys, return_inverse=True)
            self._keys.append(known)
            pairs = np.unique(self._image[caption] * len(known) + numbers)
            self._frequency.append(np.bincount(pairs % max(len(known), 1), minlength=len(known)))
            return numbers
        place, met = _find(self._keys[n], keys)
        _, others = np.unique(keys[~met], return_inverse=True)
        place[~met] = len(self._keys[n]) + others
        return place

    def _vector(self, n: int, caption: Ints, ngram: Ints, captions: int) -> _Vectors:
        wide = int(ngram.max(initial=0)) + 1
        _, first, counts = np.unique(caption * wide + ngram, return_index=True, return_counts=True)
        order = np.argsort(first)
        first, counts = first[order], counts[order]
        caption, ngram = caption[first], ngram[first]
        frequency = np.zeros(len(ngram), np.int64)
        known = ngram < len(self._frequency[n])
        frequency[known] = self._frequency[n][ngram[known]]
        pairs, kind = np.unique(counts * _WORDS + frequency, return_inverse=True)
        found = [self._weight(*divmod(pair, int(_WORDS))) for pair in pairs.tolist()]
        weight, square = np.array(found).reshape(-1, 2)[kind].T
        norm = np.sqrt(np.bincount(caption, square, captions))
        return _Vectors(caption, ngram, weight, norm)

    def _weight(self, count: int, frequency: int) -> tuple[float, float]:
        """Return tf * idf of an n-gram and its square, by the official code's operations."""
        weight = float(count) * (self._log_images - np.log(max(1.0, float(frequency))))
        return float(weight), float(pow(weight, 2))


def _find(known: Ints, wanted: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return the position of each wanted number in a sorted array, and whether it is in it."""
    place = np.searchsorted(known, wanted)
    met = place < len(known)
    met[met] = known[place[met]] == wanted[met]
    return place, met
