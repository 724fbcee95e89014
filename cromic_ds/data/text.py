"""Raw pretraining lines: `<id> #EOS# <post> #EOS# <comment> #EOC# <comment> ...` in UTF-8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MISSING_FIELDS = "missing fields"
TOO_MANY_FIELDS = "more than three fields"
EMPTY_POST = "empty post"
NO_COMMENTS = "no comments"
BAD_UTF8 = "bad UTF-8"
LONG_ID = "id is too long"

MAX_ID_BYTES = 500


class BadLine(ValueError):
    """A line that cannot be used; the text is the reason, one of this module's constants."""


@dataclass(slots=True)
class RawPost:
    """A post with its comments, as text."""

    id: str  # without blanks around it
    exact_id: str  # as written, for image sources whose keys carry a trailing blank
    post: str
    comments: list[str]


def parse_line(line: bytes) -> RawPost:
    """One line, with or without its line end. Empty comments are dropped. Raises BadLine."""
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
    """The inverse of `parse_line`, without line end."""
    return f"{id} #EOS# {post} #EOS# {' #EOC# '.join(comments)}"


def read_lines(path: str | Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, byte offset, line) of a file, one at a time."""
    offset = 0
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            yield number, offset, line
            offset += len(line)
