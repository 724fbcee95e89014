"""Exact match of free answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def exact_match(prediction: str, references: Iterable[str]) -> bool:
    """Whether the normalized prediction equals one of the normalized references; false for one without letters and digits.

    Normalization applies NFKC (full-width letters and digits) and case folding, and removes everything that is neither a letter
    nor a digit: punctuation, whitespace, emoji. FM-IQA has no official rule; this one is ours.
    """
    normalized = _normalized(prediction)
    return bool(normalized) and any(normalized == _normalized(reference) for reference in references)


def _normalized(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
