"""Confidence intervals and paired tests by the bootstrap over images.

Every score here is a function of sums over records: BLEU of lengths and matched n-grams, the others of values and their
number. So the sums of a resample of the images are weighted sums of the images' rows, and a thousand resamples are one matrix
product.
"""

from collections.abc import Iterator

import numpy as np

from cromic_ds.metrics.items import BLEU_COLUMNS, BLEU_ORDERS, Items

_TINY, _SMALL = 1e-15, 1e-9  # pycocoevalcap's guards against division by zero; they show in the BLEU of few items
_RESAMPLES_AT_ONCE = 32  # limits memory: 8 MB for 30,000 images


def scores_of(items: Items) -> dict[str, float]:
    """Return the scores of the whole corpus. Scores to which no item contributes are left out."""
    sums = _image_sums(items, np.zeros(len(items.ids), int), 1)[0]
    return {name: float(value) for name, value in _scores(items, sums).items() if not np.isnan(value)}


def resample(items: Items, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Return each score on `resamples` corpora of as many images, drawn with replacement: name → (resamples,).

    The draws depend on the seed and the images' ids only, so two systems' items for the same records are resampled alike.
    CIDEr's document frequencies stay those of the whole corpus, which makes the CIDEr of an item a constant. A score is nan in
    a resample that contains none of its items.
    """
    names, image = np.unique(items.images, return_inverse=True)
    sums_of_image = _image_sums(items, image, len(names))
    draw = np.random.default_rng(seed)
    sums = np.empty((resamples, sums_of_image.shape[1]))
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        block = sums[start : start + _RESAMPLES_AT_ONCE]
        weights = [np.bincount(draw.integers(len(names), size=len(names)), minlength=len(names)) for _ in block]
        np.matmul(np.array(weights, float), sums_of_image, out=block)
    return _scores(items, sums)


def interval(values: np.ndarray, confidence: float = 0.95) -> list[float] | None:
    """Return [low, high], the percentiles around the middle `confidence` of resampled values; None if all are nan."""
    known = values[~np.isnan(values)]
    outside = 50 * (1 - confidence)
    return [float(bound) for bound in np.percentile(known, [outside, 100 - outside])] if known.size else None


def intervals(items: Items, resamples: int, seed: int) -> dict[str, list[float]]:
    """Return the 95% interval of each score (Efron and Tibshirani 1993, percentile method); {} for 0 resamples."""
    bounds = {name: interval(values) for name, values in resample(items, resamples, seed).items()}
    return {name: pair for name, pair in bounds.items() if pair is not None}


def p_value(differences: np.ndarray) -> float:
    """Return the two-sided p-value of "no difference" from paired resampled differences: twice the smaller tail beyond 0.

    It agrees with the percentile interval of the differences (below 0.05 if that does not contain 0) and is never below
    2 / (resamples + 1). nan if all differences are.
    """
    known = differences[~np.isnan(differences)]
    if not known.size:
        return float("nan")
    one_sided = (1 + min((known <= 0).sum(), (known >= 0).sum())) / (1 + known.size)
    return float(min(1.0, 2 * one_sided))


def _ratios(items: Items) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield each mean and each of its parts: name, values, and which items contribute; the values of the others are 0."""
    for name, values in items.means.items():
        contributes, known = ~np.isnan(values), np.nan_to_num(values)
        yield name, known, contributes
        for group in items.parts(name):
            for code, part_name in enumerate(group.names):
                inside = contributes & (group.codes == code)
                yield part_name, known * inside, inside


def _image_sums(items: Items, image: np.ndarray, images: int) -> np.ndarray:
    """Return (images, columns): what `_scores` needs, summed over each image's records. image: (items,), image numbers."""
    columns = []
    if items.bleu is not None:
        counts = np.nan_to_num(items.bleu)
        ngrams = [np.maximum(counts[:, 0] - k, 0) for k in range(BLEU_ORDERS)]
        columns += [*counts.T, *ngrams]
    for _, values, contributes in _ratios(items):
        columns += [values, contributes]
    summed = [np.bincount(image, weights=column, minlength=images) for column in columns]
    return np.stack(summed, axis=1) if summed else np.empty((images, 0))


def _scores(items: Items, sums: np.ndarray) -> dict[str, np.ndarray]:
    """Return scores from sums (..., columns) in the order of `_image_sums`: name → (...)."""
    scores, at = {}, 0
    if items.bleu is not None:
        at = BLEU_COLUMNS + BLEU_ORDERS
        tokens, closest = sums[..., 0], sums[..., 1]
        matched, ngrams = sums[..., 2:BLEU_COLUMNS], sums[..., BLEU_COLUMNS:at]
        precision = np.cumprod((matched + _TINY) / (ngrams + _SMALL), axis=-1)
        brevity = np.exp(np.minimum(0, 1 - (closest + _SMALL) / (tokens + _TINY)))
        brevity = np.where(closest > 0, brevity, np.nan)  # no reference: the resample contains none of its items
        scores = {f"bleu_{n}": precision[..., n - 1] ** (1 / n) * brevity for n in range(1, BLEU_ORDERS + 1)}
    with np.errstate(invalid="ignore"):  # 0 / 0: the resample contains none of its items
        for k, name in enumerate(items.names()):
            scores[name] = sums[..., at + 2 * k] / sums[..., at + 2 * k + 1]
    return scores
