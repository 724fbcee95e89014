"""Grounded accuracy: how many texts state what only the picture shows."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from cromic_ds.metrics.items import Items, group


def states_answer(text: str, extras: dict[str, Any]) -> bool | None:
    """Whether `text` names the record's answer and nothing wrong; None if the record has no answer.

    `answer` in the extras is a word ("红色"), or a list of words that must all be named. `alternatives` lists the words that
    would be wrong in its place; the answer may be among them. Of two words that overlap ("左", "左上") the longer one counts.
    """
    answers = _words(extras.get("answer"))
    if not answers:
        return None
    return set(_finder(answers | _words(extras.get("alternatives"))).findall(text)) == answers


def add_grounded(items: Items, predictions: Sequence[str], extras: Sequence[dict[str, Any]]) -> None:
    """Add the mean `grounded` and its parts by `kind` of question in the extras, if any record has an answer."""
    stated = [states_answer(text, extra) for text, extra in zip(predictions, extras)]
    if all(s is None for s in stated):
        return
    kinds = [None if s is None or not extra.get("kind") else str(extra["kind"]) for s, extra in zip(stated, extras)]
    items.means["grounded"] = np.array(stated, float)  # None becomes nan
    items.groups.append(group("grounded", kinds))


def _words(value: object) -> frozenset[str]:
    """Return the words of a field that may be absent, one word or a list. Other values are ignored."""
    words = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return frozenset(word for word in words if isinstance(word, str) and word)


@functools.lru_cache(maxsize=1024)
def _finder(words: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)))
