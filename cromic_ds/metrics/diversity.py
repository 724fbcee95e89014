"""Diversity of generated text: distinct-n and entropy-n over a whole corpus of segmented text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable


def distinct_n(segmented: Iterable[str], n: int) -> float:
    """Return different n-grams / all n-grams of the corpus (Li et al. 2016); 0 if no text has n tokens."""
    counts = _ngrams(segmented, n)
    total = counts.total()
    return len(counts) / total if total else 0.0


def entropy_n(segmented: Iterable[str], n: int) -> float:
    """Return the entropy of the corpus' n-grams in nats (Zhang et al. 2018); 0 if no text has n tokens."""
    counts = _ngrams(segmented, n)
    total = counts.total()
    return sum(count / total * math.log(total / count) for count in counts.values())


def _ngrams(segmented: Iterable[str], n: int) -> Counter[tuple[str, ...]]:
    """Count the n-grams of texts whose tokens are joined by spaces. No n-gram spans two texts."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in segmented:
        tokens = text.split()
        counts.update(zip(*(tokens[k:] for k in range(n))))
    return counts
