"""The one exception that a user's mistake raises, and the helper that names what they probably meant.

`errors`, `batch` and `answers` are the leaves of the package: every other module may import them, they import nothing of
ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do. Commands print it and exit with code 2."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the valid name closest to `name`, or an empty string where nothing is close."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
