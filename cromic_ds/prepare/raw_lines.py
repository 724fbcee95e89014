"""Raw pretraining lines: `<id> #EOS# <post> #EOS# <comment> #EOC# <comment> ...` in UTF-8."""

from __future__ import annotations

from dataclasses import dataclass

from cromic_ds.data.reject_reasons import (
    BAD_UTF8,
    EMPTY_POST,
    LONG_ID,
    MISSING_FIELDS,
    NO_COMMENTS,
    TOO_MANY_FIELDS,
)

MAX_ID_BYTES = 500


class BadLine(ValueError):
    """A line that cannot be used; the message is the reason, one of `data/reject_reasons.py`."""


@dataclass(slots=True)
class RawPost:
    """A post with its comments, as text."""

    id: str  # stripped
    exact_id: str  # as written, for image sources whose keys have a trailing space
    post: str
    comments: list[str]


def parse_line(line: bytes) -> RawPost:
    """Parse a line, with or without its line end. Empty comments are dropped. Raises BadLine."""
    try:
        text = line.decode("utf-8").lstrip("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadLine(BAD_UTF8) from error
    fields = text.split("#EOS#")
    id = fields[0].strip()
    if len(fields) < 3 or not id:
        raise BadLine(MISSING_FIELDS)
    if len(fields) > 3:
        raise BadLine(TOO_MANY_FIELDS)  # most likely two lines that lost the line end between them
    if len(id.encode()) > MAX_ID_BYTES:
        raise BadLine(LONG_ID)
    post = fields[1].strip()
    if not post:
        raise BadLine(EMPTY_POST)
    comments = [comment.strip() for comment in fields[2].split("#EOC#")]
    comments = [comment for comment in comments if comment]
    if not comments:
        raise BadLine(NO_COMMENTS)
    return RawPost(id, fields[0].removesuffix(" "), post, comments)


def format_line(id: str, post: str, comments: list[str]) -> str:
    """Return the line that `parse_line` reads, without line end."""
    return f"{id} #EOS# {post} #EOS# {' #EOC# '.join(comments)}"
