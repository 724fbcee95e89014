"""Grounded accuracy: does a text state what only the picture shows?"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np

from cromic_ds.metrics.items import Items, group


def states_answer(text: str, extras: dict) -> bool | None:
    """Whether `text` names the record's answer and nothing that would be wrong; None where the record has no answer.

    The extras' `answer` is a word ("红色"), or a list of words of which all must be named. `alternatives` lists the words
    that would be wrong there (answers among them do no harm). Where one word lies within another ("左" in "左上"), the
    longest counts.
    """
    answers = _words(extras.get("answer"))
    if not answers:
        return None
    return set(_finder(answers | _words(extras.get("alternatives"))).findall(text)) == answers


def add_grounded(items: Items, predictions: Sequence[str], extras: Sequence[dict]) -> None:
    """Add the mean `grounded` and its parts by the extras' `kind` of question, where any record has an answer."""
    stated = [states_answer(text, extra) for text, extra in zip(predictions, extras)]
    if all(s is None for s in stated):
        return
    kinds = [None if s is None or not extra.get("kind") else str(extra["kind"]) for s, extra in zip(stated, extras)]
    items.means["grounded"] = np.array(stated, float)  # None becomes nan
    items.groups.append(group("grounded", kinds))


def _words(value: object) -> frozenset[str]:
    """The words of a field that may be absent, one word, or a list. Extras are free: anything else is no word."""
    words = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return frozenset(word for word in words if isinstance(word, str) and word)


@functools.lru_cache(maxsize=1024)
def _finder(words: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)))
