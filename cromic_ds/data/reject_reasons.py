"""Reasons for which a record is rejected, as `rejects.jsonl` names them."""

from __future__ import annotations

EMPTY_POST = "empty post"


NO_COMMENTS = "no comments"


BAD_UTF8 = "bad UTF-8"


DUPLICATE = "duplicate id"
