"""The official accuracy of VQA v2.0."""

import functools
from collections.abc import Sequence

import numpy as np

from cromic_ds.data.dataset import Texts
from cromic_ds.errors import UserError
from cromic_ds.metrics.bootstrap import scores_of
from cromic_ds.metrics.grounded import add_grounded
from cromic_ds.metrics.items import Items, group
from cromic_ds.metrics.measured import Measured, image_of, measured
from cromic_ds.metrics.vqa_answers import clean_answer, normalize_answer

WHOLE_ANSWERS = "vqa"  # takes the place of a tokenization in results: whole answers are compared, after normalization

_normalize = functools.lru_cache(maxsize=1 << 16)(normalize_answer)  # a few thousand answers are most of the data


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the accuracy of one prediction, 0 to 1: the mean of min(1, matches / 3) over the leave-one-out subsets of answers.

    With ten answers that is 0.3, 0.6, 0.9 and 1 for one, two, three and more matches. (The official tool prints it per question
    as a percentage rounded to two places, and sums the unrounded values.) Quirks of the official tool, see vqa_answers.py:

    - Line ends and tabs are always replaced by spaces and surrounding whitespace is removed. Case and everything else are kept.
    - If all answers are then the same, nothing more is normalized: "Yes" does not match ten times "yes", nor "two" ten times
      "2", nor "yes." ten times "yes". Only if two answers differ are the answers and the prediction normalized fully.
    - Full normalization may leave an empty answer ("the"), which then matches an empty prediction.
    """
    given = [clean_answer(answer) for answer in answers]
    said = clean_answer(prediction)
    if len(set(given)) > 1:
        given, said = [_normalize(answer) for answer in given], _normalize(said)
    people, matches = len(given), given.count(said)
    # The answer that is left out either matches the prediction or does not. Counted in thirds, so that the result is exact.
    thirds = matches * min(3, matches - 1) + (people - matches) * min(3, matches)
    return thirds / (3 * people)


def measure_answers(
    predictions: list[str], records: list[Texts], resamples: int = 1000, seed: int = 0, by_question_type: bool = True
) -> Measured:
    """Score one answer per record by its accuracy against the ten in `answers` of the record's extras.

    Scores: `accuracy`, `accuracy_<answer type>` (`accuracy_yes_no`, `accuracy_number`, `accuracy_other`), with
    `by_question_type` also `accuracy_question_<question type>`, 0 to 1 each; `grounded` and its parts if records have an
    `answer` in their extras. Records without `answers` are left out and counted in a note. Raises UserError if
    nothing can be scored.
    """
    if not predictions:
        raise UserError("nothing to score: there are no predictions; check the split and the limit of examples")
    extras = [record.extras for record in records]
    answers = [extra.get("answers") or () for extra in extras]
    scored = sum(bool(given) for given in answers)
    if not scored:
        raise UserError(f"nothing to score: none of the {len(predictions)} questions has people's answers")
    accuracy = [vqa_accuracy(text, given) if given else np.nan for text, given in zip(predictions, answers)]
    groups = [group("accuracy", [_label(extra.get("answer_type")) for extra in extras])]
    if by_question_type:
        types = [_label(extra.get("question_type")) for extra in extras]
        groups.append(group("accuracy_question", types, of="accuracy"))
    ids, images = [record.id for record in records], [image_of(record) for record in records]
    items = Items(ids, images, {"accuracy": np.array(accuracy, float)}, groups)
    add_grounded(items, predictions, extras)
    notes = []
    if scored < len(records):
        notes.append(f"without people's answers, so not scored: {len(records) - scored} questions")
    if empty := sum(not text.strip() for text in predictions):
        notes.append(f"empty predictions: {empty}")
    return measured(scores_of(items), items, scored, WHOLE_ANSWERS, notes, resamples, seed)


def _label(name: object) -> str | None:
    """Return a type as the end of a score's name ("yes/no" → "yes_no"), or None if a question has no type."""
    return "_".join(str(name).replace("/", " ").split()) if name else None
