"""CIDEr-D of single texts with given document frequencies, as a reward. The score of a corpus is in `captions.py`.

The numbers equal those of pycocoevalcap's scorer, which takes the frequencies from the images that it scores. (It uses the
number of bigrams as a text's length, so the length penalty does not distinguish one word from none.) Source: Vedantam, Zitnick
& Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cromic_ds.files import replacing

CIDER_ORDERS = 4  # n-grams of 1 to 4 words
SIGMA = 6.0  # standard deviation of the length penalty, in words
BLOCK = 1 << 22  # n-grams collected before they are merged into the table: 32 MB

_MASK = (1 << 64) - 1
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that a longer n-gram loses no bit of a word's hash


@functools.lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def ngram_counts(text: str) -> list[Counter[int]]:
    """Return how often each n-gram occurs in a segmented text, one Counter for each n from 1 to 4.

    An n-gram is represented by a 64-bit hash, the same in every process. Among ten million n-grams, two have the same hash with
    probability 3·10⁻⁶.
    """
    words = [_word_hash(word) for word in text.split()]
    ngrams, counts = words, [Counter(words)]
    for n in range(1, CIDER_ORDERS):
        ngrams = [(ngram * _MULTIPLIER + word) & _MASK for ngram, word in zip(ngrams, words[n:])]
        counts.append(Counter(ngrams))
    return counts


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many images' references each n-gram occurs.

    The n-grams of a single image, which are the most, are not kept: CIDEr gives them the same weight as unseen ones.
    """

    ngrams: np.ndarray  # (K + 1,) uint64, ascending; the last one is 2⁶⁴ - 1, so that every search ends within
    counts: np.ndarray  # (K + 1,) uint32; the last one is 1
    n_images: int

    @classmethod
    def count(cls, references: Iterable[list[str]]) -> DocumentFrequencies:
        """Count over the segmented references of each image. Memory grows with the different n-grams, by 12 bytes each."""
        ngrams, counts = np.empty(0, np.uint64), np.empty(0, np.uint32)
        n_images, size = 0, 0
        unmerged: list[np.ndarray] = []
        for texts in references:
            n_images += 1
            here = set().union(*(counter for text in texts for counter in ngram_counts(text)))
            unmerged.append(np.fromiter(here, np.uint64, len(here)))
            size += len(here)
            if size >= BLOCK:
                ngrams, counts = _merge(ngrams, counts, unmerged)
                unmerged, size = [], 0
        ngrams, counts = _merge(ngrams, counts, unmerged)
        kept = (counts > 1) & (ngrams < np.uint64(_MASK))
        return cls(np.append(ngrams[kept], np.uint64(_MASK)), np.append(counts[kept], np.uint32(1)), n_images)

    def idf(self, ngrams: Iterable[int]) -> np.ndarray:
        """Return log(images / images with the n-gram) of each, float64; an unseen one counts as one that one image has."""
        ngrams = np.fromiter(ngrams, np.uint64)
        at = np.searchsorted(self.ngrams, ngrams)
        return math.log(self.n_images) - np.log(np.where(self.ngrams[at] == ngrams, self.counts[at], 1))

    def save(self, path: Path, source: str) -> None:
        """Write the table as .npz. source: a description of what was counted."""
        with replacing(path, "wb") as file:
            np.savez(file, ngrams=self.ngrams, counts=self.counts, n_images=self.n_images, source=source)

    @classmethod
    def load(cls, path: Path) -> tuple[DocumentFrequencies, str]:
        """Return the saved table and its source. Raises OSError, ValueError, KeyError or BadZipFile for any other file."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(stored["ngrams"], stored["counts"], int(stored["n_images"])), str(stored["source"])


def _merge(ngrams: np.ndarray, counts: np.ndarray, images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted table after adding the different n-grams of more images."""
    everything = np.concatenate([ngrams, *images])
    ones = np.ones(len(everything) - len(ngrams), np.uint32)
    order = np.argsort(everything, kind="stable")
    everything, each = everything[order], np.concatenate([counts, ones])[order]
    starts = np.flatnonzero(np.diff(everything, prepend=~everything[:1]))
    return everything[starts], np.add.reduceat(each, starts, dtype=np.uint32) if len(starts) else each


class Weighted(NamedTuple):
    """A text as CIDEr uses it: for each n the tf-idf of its n-grams and their norm; its length is the number of bigrams."""

    vectors: list[dict[int, float]]
    norms: list[float]
    length: int


class CiderD:
    """CIDEr-D against given document frequencies."""

    def __init__(self, frequencies: DocumentFrequencies):
        self.frequencies = frequencies

    def scores(self, texts: list[str], references: list[str]) -> list[float]:
        """Return the score, 0 to 10, of each of an image's texts against its references (at least one); all are segmented."""
        targets = [self.weigh(reference) for reference in references]
        weighted = [self.weigh(text) for text in texts]
        return [10 * sum(similarity(text, target) for target in targets) / len(targets) for text in weighted]

    def weigh(self, text: str) -> Weighted:
        """Return a segmented text with its weights."""
        counts = ngram_counts(text)
        idf = iter(self.frequencies.idf(ngram for counter in counts for ngram in counter).tolist())
        vectors = [{ngram: n * next(idf) for ngram, n in counter.items()} for counter in counts]
        norms = [math.sqrt(sum(w * w for w in vector.values())) for vector in vectors]
        return Weighted(vectors, norms, counts[1].total())


def similarity(text: Weighted, reference: Weighted) -> float:
    """Return the mean over n of the cosine, with the text's weights clipped to the reference's, times the length penalty."""
    cosines = 0.0
    for n in range(CIDER_ORDERS):
        target, norms = reference.vectors[n], text.norms[n] * reference.norms[n]
        if norms:
            common = text.vectors[n].keys() & target.keys()
            cosines += sum(min(text.vectors[n][ngram], target[ngram]) * target[ngram] for ngram in common) / norms
    difference = text.length - reference.length
    return cosines / CIDER_ORDERS * math.exp(-(difference**2) / (2 * SIGMA**2))
