"""BLEU, ROUGE-L, CIDEr and METEOR over a whole corpus, by pycocoevalcap."""

import contextlib
import logging
import shutil
import threading
from dataclasses import dataclass

import numpy as np

from cromic_ds.errors import UserError
from cromic_ds.metrics.items import BLEU_ORDERS

log = logging.getLogger(__name__)

METEOR_SECONDS_TO_START = 120  # loading its 60 MB paraphrase table takes about 10 s on a free core
METEOR_SECONDS_PER_ITEM = 0.1


@dataclass
class CaptionScores:
    """pycocoevalcap's scores of a corpus, and the numbers of each item from which they are computed."""

    scores: dict[str, float]
    bleu: np.ndarray  # (items, BLEU_COLUMNS)
    rouge_l: np.ndarray  # (items,)
    cider: np.ndarray  # (items,)


def score_segmented(predictions: list[str], references: list[list[str]], meteor: bool) -> CaptionScores:
    """Score texts whose tokens are joined by spaces: a prediction and at least one reference, not empty, per item.

    Scores: `bleu_1` … `bleu_4`, `rouge_l`, `cider`, and with `meteor`, if a working Java is found, `meteor` (with its English
    settings, so on Chinese only literal matches count). An empty prediction matches nothing. CIDEr weights n-grams by the
    number of images they occur in, so that a corpus of one image always has CIDEr 0. (pycocoevalcap's CIDEr is like CIDEr-D:
    clipped counts and a length penalty.) Raises UserError if there is no item.
    """
    if not predictions:
        raise UserError("nothing to score: there are no predictions; check the split and the limit of examples")

    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = BleuScorer(n=BLEU_ORDERS)
    for item in zip(predictions, references):
        scorer += item
    bleu, _ = scorer.compute_score(option="closest")
    scores = {f"bleu_{n}": float(value) for n, value in enumerate(bleu, start=1)}
    # The reference's length nearest to the prediction's, the shorter one of two: the scorer does not keep its "closest".
    nearest = [min((abs(length - c["testlen"]), length) for length in c["reflen"])[1] for c in scorer.ctest]
    counts = [(c["testlen"], length, *c["correct"]) for c, length in zip(scorer.ctest, nearest)]
    hypotheses = {k: [text] for k, text in enumerate(predictions)}
    targets = dict(enumerate(references))
    rouge_l, rouge_l_of_item = Rouge().compute_score(targets, hypotheses)
    cider, cider_of_item = Cider().compute_score(targets, hypotheses)
    scores |= {"rouge_l": float(rouge_l), "cider": float(cider)}
    if meteor and (value := _meteor(targets, hypotheses)) is not None:
        scores["meteor"] = value
    return CaptionScores(scores, np.array(counts, float), rouge_l_of_item, cider_of_item)


def _meteor(targets: dict[int, list[str]], hypotheses: dict[int, list[str]]) -> float | None:
    """Return METEOR of the corpus, or None if its Java program is missing, fails or hangs; the last two are logged."""
    if shutil.which("java") is None:
        return None
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    # pycocoevalcap reads the program's output without a time limit. Killing the program turns a hang into an end of file.
    limit = METEOR_SECONDS_TO_START + METEOR_SECONDS_PER_ITEM * len(targets)
    watchdog = threading.Timer(limit, scorer.meteor_p.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        return float(scorer.compute_score(targets, hypotheses)[0])
    except (OSError, ValueError) as error:  # a closed pipe; an empty line instead of a number
        log.warning("METEOR is left out: its Java program failed (%s)", error)
        if stdin := scorer.meteor_p.stdin:
            with contextlib.suppress(OSError):
                stdin.close()  # drops what could not be written; its __del__ would fail on that
        return None
    finally:
        watchdog.cancel()
        if scorer.lock.locked():  # an error left it locked; its __del__ would wait forever
            scorer.lock.release()
