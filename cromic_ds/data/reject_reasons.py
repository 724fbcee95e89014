"""Why a record is rejected, as `rejects.jsonl` says it. Reasons that concern only images are in `images.py`."""

from __future__ import annotations

MISSING_FIELDS = "missing fields"
TOO_MANY_FIELDS = "more than three fields"
LONG_ID = "id is too long"
EMPTY_POST = "empty post"
NO_COMMENTS = "no comments"
BAD_UTF8 = "bad UTF-8"
DUPLICATE = "duplicate id"
MISSING_IMAGE = "missing image"
BAD_BASE64 = "broken base64"
