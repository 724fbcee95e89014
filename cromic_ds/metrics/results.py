"""All scores of generated text in one flat dict, for the evaluation in training and for `cromic-ds evaluate`."""

from __future__ import annotations

from cromic_ds.errors import UserError
from cromic_ds.metrics.captions import caption_scores, check_same_ids
from cromic_ds.metrics.diversity import distinct_n, entropy_n
from cromic_ds.metrics.grounded import grounded_accuracy
from cromic_ds.metrics.segment import segment


def score_predictions(
    predictions: dict[str, str],
    references: dict[str, list[str]],
    extras: dict[str, dict] | None = None,
    tokenisation: str = "char",
    meteor: bool = True,
) -> dict[str, float | int | str | list[str]]:
    """Corpus-level scores of one generated text per id.

    Keys: those of `caption_scores`, `distinct_1`, `distinct_2`, `entropy_4` (nats), those of `grounded_accuracy`;
    then `n_items` (ids scored against references), `tokenisation`, and `notes`, sentences that a reader of the
    numbers must know. Ids without any reference text are left out of the captioning scores and counted in a note.

    Raises UserError where the ids of both sides differ or nothing can be scored.
    """
    check_same_ids(predictions, references)
    scored = [i for i in predictions if any(segment(text, tokenisation) for text in references[i])]
    if predictions and not scored:
        raise UserError(f"nothing to score: none of the {len(predictions)} records has a reference text")
    segmented = [segment(text, tokenisation) for text in predictions.values()]

    scores: dict = caption_scores(
        {i: predictions[i] for i in scored}, {i: references[i] for i in scored}, tokenisation, meteor
    )
    scores |= {"distinct_1": distinct_n(segmented, 1), "distinct_2": distinct_n(segmented, 2)}
    scores["entropy_4"] = entropy_n(segmented, 4)
    scores |= grounded_accuracy(predictions, {i: e for i, e in (extras or {}).items() if i in predictions})

    notes = []
    if len(scored) == 1:
        notes.append("CIDEr of one image is 0 by its definition")
    if len(scored) < len(predictions):
        notes.append(
            f"without reference text, so not in the captioning scores: {len(predictions) - len(scored)} records"
        )
    if empty := sum(not text for text in segmented):
        notes.append(f"empty predictions, scored as matching nothing: {empty}")
    if meteor and "meteor" not in scores:
        notes.append("METEOR is left out: no working Java was found")
    return scores | {"n_items": len(scored), "tokenisation": tokenisation, "notes": notes}
