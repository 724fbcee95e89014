"""Reading and writing files: one atomic write, one digest, one lock, one JSON reader. Standard library only.

Durability: a file that is written here is on the disk before it gets its name, so that a crash of the machine leaves the old
content or the new one. `durable=False` is for files that are written again every few seconds.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypedDict

PIECE_BYTES = 1 << 22  # read and hashed at a time


class FileDigest(TypedDict):
    """Size and BLAKE2b hash of a file."""

    bytes: int
    blake2b: str


@contextmanager
def replacing(path: str | Path, mode: str = "w", durable: bool = True) -> Iterator[IO[Any]]:
    """Open a new file that takes the name `path` when the block ends; if it fails, `path` is as it was and nothing is left.

    Args:
        mode: "w" for UTF-8 text with "\\n" line ends, "wb" for bytes.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.writing")
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    try:
        with aside.open(mode, encoding=encoding, newline=newline) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: str | bytes, durable: bool = True) -> None:
    """Write a whole file; see `replacing`."""
    with replacing(path, "wb", durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, values: Any, indent: int | None = None, durable: bool = True) -> None:
    """Write values as JSON in UTF-8; see `replacing`."""
    write_atomically(path, json.dumps(values, ensure_ascii=False, indent=indent), durable)


def read_json(path: str | Path) -> Any:
    """Return the values of a JSON file. Raises OSError, or ValueError for anything that is not JSON in UTF-8."""
    return json.loads(Path(path).read_bytes())


def read_json_if_there(path: str | Path) -> Any | None:
    """Return the values of a JSON file, None where it is absent, unreadable or not JSON."""
    try:
        return read_json(path)
    except (OSError, ValueError, RecursionError):
        return None


def digest(content: str | bytes, size: int = 8) -> str:
    """Return the BLAKE2b hash of a text or of bytes; `size`: bytes of the hash, two hexadecimal digits each."""
    return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=size).hexdigest()


def file_digest(path: Path) -> FileDigest:
    """Return the size and the hash of a file."""
    hashed = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            hashed.update(piece)
    return {"bytes": path.stat().st_size, "blake2b": hashed.hexdigest()}


class DigestedFile:
    """A new file that knows its `FileDigest`; once closed, it is on the disk."""

    def __init__(self, path: Path):
        self._file, self._hashed, self._size = path.open("wb"), hashlib.blake2b(digest_size=16), 0

    def write(self, content: bytes | memoryview) -> int:
        self._hashed.update(content)
        self._size += len(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def digest(self) -> FileDigest:
        return {"bytes": self._size, "blake2b": self._hashed.hexdigest()}


@contextmanager
def exclusive(path: str | Path, wait: bool = False) -> Iterator[IO[bytes]]:
    """Hold a lock file, which is made where it is absent, and yield it open for reading and appending.

    The lock goes with the process, however that ends. For hosts that share a folder over NFS see `ranks/lock.py`.

    Raises:
        BlockingIOError: another process holds it, unless `wait` is set.
    """
    with Path(path).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file


def read_lines(path: str | Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, byte offset, line) of a file, one at a time."""
    offset = 0
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            yield number, offset, line
            offset += len(line)
