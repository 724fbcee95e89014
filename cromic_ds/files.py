"""Files: reading lines, atomic writes, digests. Standard library only."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)


def read_lines(path: str | Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, byte offset, line) of a file, one at a time."""
    offset = 0
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            yield number, offset, line
            offset += len(line)


def describe(path: Path) -> dict:
    """Size in bytes and BLAKE2b hash of a file."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as f:
        while piece := f.read(1 << 22):
            digest.update(piece)
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest()}


def write_atomically(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(text)
    aside.replace(path)
