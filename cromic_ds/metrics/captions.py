"""BLEU, ROUGE-L, CIDEr and METEOR over a whole corpus, by pycocoevalcap."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from dataclasses import dataclass

import numpy as np

from cromic_ds.errors import UserError
from cromic_ds.metrics.items import ORDERS
from cromic_ds.metrics.segment import segment

logger = logging.getLogger(__name__)

METEOR_SECONDS_TO_START = 120  # loading its 60 MB paraphrase table takes about 10 s on a free core
METEOR_SECONDS_PER_ITEM = 0.1


@dataclass
class CaptionScores:
    """pycocoevalcap's numbers for a corpus, and those of each item that they are made of."""

    scores: dict[str, float]
    bleu: np.ndarray  # (items, BLEU_COLUMNS)
    rouge_l: np.ndarray  # (items,)
    cider: np.ndarray  # (items,)


def caption_scores(
    predictions: dict[str, str], references: dict[str, list[str]], tokenization: str = "char", meteor: bool = True
) -> dict[str, float]:
    """Corpus-level scores of one prediction per id against that id's references.

    Keys: `bleu_1` … `bleu_4`, `rouge_l`, `cider`, and `meteor` where asked for and a working Java is found (its English
    settings, so on Chinese only literal matches count). An empty prediction counts as one that matches nothing; blank
    references are passed over. CIDEr weighs n-grams by the number of images they occur in, so that a corpus of one
    image always has CIDEr 0. (pycocoevalcap's CIDEr is CIDEr-D-like: clipped counts and a length penalty.)

    Raises UserError where the ids differ, nothing is to be scored, or an id has no reference text.
    """
    _check_same_ids(predictions, references)
    targets = [segment_all(references[i], tokenization) for i in predictions]
    bare = [i for i, texts in zip(predictions, targets) if not texts]
    if bare:
        raise UserError(
            f"id {bare[0]!r} has no reference text ({len(bare)} such ids): leave such ids out of the scoring"
        )
    return score_segmented([segment(text, tokenization) for text in predictions.values()], targets, meteor).scores


def segment_all(texts: list[str], tokenization: str) -> list[str]:
    """The texts cut into tokens, those without tokens left out."""
    return [segmented for text in texts if (segmented := segment(text, tokenization))]


def score_segmented(predictions: list[str], references: list[list[str]], meteor: bool) -> CaptionScores:
    """Scores of texts whose tokens are joined by blanks: a prediction and at least one reference per item.

    Raises UserError where there is no item.
    """
    if not predictions:
        raise UserError("nothing to score: there are no predictions; check the split and the limit of examples")

    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = BleuScorer(n=ORDERS)
    for item in zip(predictions, references):
        scorer += item
    bleu, _ = scorer.compute_score(option="closest")
    scores = {f"bleu_{n}": float(value) for n, value in enumerate(bleu, start=1)}
    counts = [(c["testlen"], _closest(c["reflen"], c["testlen"]), *c["correct"]) for c in scorer.ctest]
    hypotheses = {k: [text] for k, text in enumerate(predictions)}
    targets = dict(enumerate(references))
    rouge_l, rouge_l_of_item = Rouge().compute_score(targets, hypotheses)
    cider, cider_of_item = Cider().compute_score(targets, hypotheses)
    scores |= {"rouge_l": float(rouge_l), "cider": float(cider)}
    if meteor and (value := _meteor(targets, hypotheses)) is not None:
        scores["meteor"] = value
    return CaptionScores(scores, np.array(counts, float), rouge_l_of_item, cider_of_item)


def _closest(lengths: list[int], length: int) -> int:
    """The length nearest to `length`, the shorter of two equally near: pycocoevalcap's "closest", which it does not keep."""
    return min((abs(other - length), other) for other in lengths)[1]


def _check_same_ids(predictions: dict, references: dict) -> None:
    """Raises UserError, naming an id, unless both sides have the same ids."""
    for have, lack, other in ((references, predictions, "prediction"), (predictions, references, "reference")):
        missing = [i for i in have if i not in lack]
        if missing:
            raise UserError(
                f"id {missing[0]!r} has no {other} ({len(missing)} such ids): "
                "predictions and references must cover the same ids"
            )


def _meteor(targets: dict[int, list[str]], hypotheses: dict[int, list[str]]) -> float | None:
    """METEOR of the corpus, or None (and a line in the log) where its Java program is missing, fails or hangs."""
    if shutil.which("java") is None:
        return None
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    # It reads the program's answers without a time limit: killing the program turns a hang into an end of file.
    limit = METEOR_SECONDS_TO_START + METEOR_SECONDS_PER_ITEM * len(targets)
    watchdog = threading.Timer(limit, scorer.meteor_p.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        return float(scorer.compute_score(targets, hypotheses)[0])
    except (OSError, ValueError) as error:  # a closed pipe; an empty answer that is no number
        logger.warning("METEOR is left out: its Java program failed (%s)", error)
        with contextlib.suppress(OSError):
            scorer.meteor_p.stdin.close()  # with what could not be written, which its __del__ would trip over
        return None
    finally:
        watchdog.cancel()
        if scorer.lock.locked():  # left locked by an error, on which its __del__ would wait for ever
            scorer.lock.release()
