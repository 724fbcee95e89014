"""All scores of generated texts: comments, captions and free answers."""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import chain

import numpy as np

from cromic_ds.data.dataset import Texts
from cromic_ds.errors import UserError
from cromic_ds.metrics.bootstrap import scores_of
from cromic_ds.metrics.captions import score_segmented
from cromic_ds.metrics.grounded import add_grounded
from cromic_ds.metrics.items import BLEU_COLUMNS, Items
from cromic_ds.metrics.measured import Measured, image_of, measured
from cromic_ds.metrics.segment import segment


def measure_texts(
    predictions: list[str],
    records: list[Texts],
    tokenization: str,
    meteor: bool,
    resamples: int = 1000,
    seed: int = 0,
    exact: bool = False,
) -> Measured:
    """Score one text per record over the whole corpus. The records' comments are the references.

    Scores: `bleu_1` … `bleu_4`, `rouge_l`, `cider`; with `exact`, `exact_match`; with `meteor`, if Java is found, `meteor`;
    `grounded` and its parts if records have an answer; `distinct_1`, `distinct_2`, `entropy_4` (nats). Records are identified
    by position, so ids may repeat. Records without any reference text are left out of the scores against references and counted
    in a note. METEOR and diversity have no intervals because they are not computed from sums over records. Raises UserError if
    nothing can be scored.
    """
    hypotheses = [segment(text, tokenization) for text in predictions]
    targets = [[s for text in record.comments if (s := segment(text, tokenization))] for record in records]
    rows = [k for k, texts in enumerate(targets) if texts]
    if predictions and not rows:
        raise UserError(f"nothing to score: none of the {len(predictions)} records has a reference text")
    captions = score_segmented([hypotheses[k] for k in rows], [targets[k] for k in rows], meteor)

    def spread(values: np.ndarray, *shape: int) -> np.ndarray:
        """Return values for all records from those of the scored ones, nan for the others."""
        out = np.full((len(records), *shape), np.nan)
        out[rows] = values
        return out

    means = {"rouge_l": spread(captions.rouge_l), "cider": spread(captions.cider)}
    if exact:
        matches = [exact_match(predictions[k], records[k].comments) for k in rows]
        means["exact_match"] = spread(np.array(matches, float))
    ids, images = [record.id for record in records], [image_of(record) for record in records]
    items = Items(ids, images, means, bleu=spread(captions.bleu, BLEU_COLUMNS))
    add_grounded(items, predictions, [record.extras for record in records])

    # Both have BLEU. The numbers differ by rounding only; pycocoevalcap's are kept.
    scores = scores_of(items) | captions.scores
    scores |= {"distinct_1": distinct_n(hypotheses, 1), "distinct_2": distinct_n(hypotheses, 2)}
    scores["entropy_4"] = entropy_n(hypotheses, 4)
    notes = []
    if len(rows) == 1:
        notes.append("CIDEr of one image is 0 by its definition")
    if bare := len(records) - len(rows):
        notes.append(f"without reference text, so not in the scores against references: {bare} records")
    if empty := sum(not text for text in hypotheses):
        notes.append(f"empty predictions, scored as matching nothing: {empty}")
    if meteor and "meteor" not in scores:
        notes.append("METEOR is left out: no working Java was found")
    return measured(scores, items, len(rows), tokenization, notes, resamples, seed)


def exact_match(prediction: str, references: Iterable[str]) -> bool:
    """Whether the normalized prediction equals one of the normalized references; false for one without letters and digits.

    Normalization applies NFKC (full-width letters and digits) and case folding, and removes everything that is neither a letter
    nor a digit: punctuation, whitespace, emoji. FM-IQA has no official rule; this one is ours.
    """
    normalized = _normalized(prediction)
    return bool(normalized) and any(normalized == _normalized(reference) for reference in references)


def _normalized(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def distinct_n(segmented: Iterable[str], n: int) -> float:
    """Return different n-grams / all n-grams of the corpus (Li et al. 2016); 0 if no text has n tokens."""
    counts = _ngrams(segmented, n)
    return len(counts) / counts.total() if counts else 0.0


def entropy_n(segmented: Iterable[str], n: int) -> float:
    """Return the entropy of the corpus' n-grams in nats (Zhang et al. 2018); 0 if no text has n tokens."""
    counts = _ngrams(segmented, n)
    total = counts.total()
    return sum(count / total * math.log(total / count) for count in counts.values())


def _ngrams(segmented: Iterable[str], n: int) -> Counter[tuple[str, ...]]:
    """Count the n-grams of texts whose tokens are joined by spaces. No n-gram spans two texts."""
    tokenized = map(str.split, segmented)
    return Counter(chain.from_iterable(zip(*(tokens[k:] for k in range(n))) for tokens in tokenized))
