"""Exact match of free answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def exact_match(prediction: str, references: Iterable[str]) -> bool:
    """Whether the prediction is one of the references, both normalized; never true of a prediction without letters.

    Normalized are compatibility forms (NFKC: full-width letters and digits), case, and everything that is neither a
    letter nor a digit, which goes: punctuation, blanks, emoji. FM-IQA has no official rule; this one is ours.
    """
    normalized = _normalized(prediction)
    return bool(normalized) and any(normalized == _normalized(reference) for reference in references)


def _normalized(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
