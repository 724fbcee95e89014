"""How varied generated text is: distinct-n and entropy-n over a whole corpus of segmented text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable


def distinct_n(segmented: Iterable[str], n: int) -> float:
    """Different n-grams / all n-grams of the corpus (Li et al. 2016); 0 where no text has n tokens."""
    counts = _ngrams(segmented, n)
    total = counts.total()
    return len(counts) / total if total else 0.0


def entropy_n(segmented: Iterable[str], n: int) -> float:
    """Entropy, in nats, of the corpus' distribution of n-grams (Zhang et al. 2018); 0 where no text has n tokens."""
    counts = _ngrams(segmented, n)
    total = counts.total()
    return sum(count / total * math.log(total / count) for count in counts.values())


def _ngrams(segmented: Iterable[str], n: int) -> Counter:
    """Counts of the n-grams of texts whose tokens are joined by blanks; no n-gram crosses two texts."""
    counts: Counter = Counter()
    for text in segmented:
        tokens = text.split()
        counts.update(zip(*(tokens[k:] for k in range(n))))
    return counts
