"""Confidence interval of a share of judgments, and agreement of two raters beyond chance."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from statistics import NormalDist


def wilson(passed: float, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of the share passed / total (Wilson 1927); (0, 1) if nothing was judged.

    Unlike the normal approximation it stays within 0 and 1, and it is valid for few judgments and for shares near 0 or 1.

    Raises ValueError unless 0 ≤ passed ≤ total and 0 < confidence < 1.
    """
    if not 0 <= passed <= total or not 0 < confidence < 1:
        raise ValueError(f"{passed} of {total} passed, confidence {confidence}")
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = passed / total, z * z / total
    center = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    # The ends are exact; rounding would give a bound of 1e-17.
    return 0.0 if passed == 0 else center - half, 1.0 if passed == total else center + half


def cohen_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float:
    """Return Cohen's κ (1960) of two raters' labels of the same items: 1 is full agreement, 0 the agreement by chance.

    nan if it is undefined: without items, and if both raters gave the same single label to all of them.
    """
    total = len(pairs)
    agreed = sum(a == b for a, b in pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    by_chance = sum(count * second[label] for label, count in first.items())  # times total²: a whole number
    if by_chance == total * total:
        return math.nan
    return (agreed * total - by_chance) / (total * total - by_chance)
