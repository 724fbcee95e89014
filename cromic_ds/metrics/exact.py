"""Exact match of free answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def exact_match(prediction: str, references: Iterable[str]) -> bool:
    """Whether the prediction is one of the references, both normalised; never true of a prediction without letters.

    Normalised are compatibility forms (NFKC: full-width letters and digits), case, and everything that is neither a
    letter nor a digit, which goes: punctuation, blanks, emoji. FM-IQA has no official rule; this one is ours.
    """
    normalised = _normalised(prediction)
    return bool(normalised) and any(normalised == _normalised(reference) for reference in references)


def _normalised(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
