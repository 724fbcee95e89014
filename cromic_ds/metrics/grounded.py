"""Grounded accuracy: does a comment state what only the picture shows?"""

from __future__ import annotations

import re
from collections import defaultdict

from cromic_ds.errors import UserError


def grounded_accuracy(predictions: dict[str, str], extras: dict[str, dict]) -> dict[str, float]:
    """The share of predictions that name the right attribute and none of the wrong ones.

    A record takes part where its extras have `answer` (a word: "红色"); `alternatives` lists the words that would be
    wrong there (the answer among them does no harm), `kind` the kind of question. Where one word lies within another
    ("左" in "左上"), the longest counts. Result: `grounded` over all records and `grounded_<kind>` for each kind;
    {} where no record has an answer.

    Raises UserError where such a record has no prediction.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    for i, extra in extras.items():
        answer = extra.get("answer")
        if not answer:
            continue
        if i not in predictions:
            raise UserError(f"id {i!r} has an answer but no prediction: predict every record that is to be scored")
        words = {answer, *extra.get("alternatives", ())} - {""}
        pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
        hit = set(re.findall(pattern, predictions[i])) == {answer}
        hits["grounded"].append(hit)
        if extra.get("kind"):
            hits[f"grounded_{extra['kind']}"].append(hit)
    return {name: sum(values) / len(values) for name, values in sorted(hits.items())}
