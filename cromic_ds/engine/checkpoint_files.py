"""DeepSpeed's checkpoint files, taken into memory or hashed as they are written."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

log = logging.getLogger(__name__)


PIECE = 1 << 22  # bytes written and hashed at a time


class InMemory(TorchCheckpointEngine):
    """DeepSpeed's files, kept as bytes until `write`. The memory is used again: a first touch costs as much as ten copies."""

    background = True

    def __init__(self):
        super().__init__()
        self.files: dict[str, io.BytesIO] = {}

    def save(self, state_dict: dict, path: str) -> None:
        memory = self.files.setdefault(Path(path).name, io.BytesIO())
        memory.seek(0)
        torch.save(state_dict, memory)
        memory.truncate()

    def add(self, name: str, content: bytes) -> None:
        self.files[name] = io.BytesIO(content)

    def write(self, folder: Path, pending: Pending) -> None:
        for name, memory in self.files.items():
            with closing(HashedFile(folder / name)) as file, memory.getbuffer() as content:
                for first in range(0, len(content), PIECE):
                    pending.n_bytes += file.write(content[first : first + PIECE])
            pending.files[name] = file.entry()


class OnDisk(InMemory):
    """DeepSpeed's files, written at once; the small ones by `write`."""

    background = False

    def __init__(self):
        super().__init__()
        self.written: dict[str, dict] = {}
        self.error: Exception | None = None

    def save(self, state_dict: dict, path: str) -> None:
        """An error is kept for `write`: raised here, the other ranks would wait for this one."""
        try:
            with closing(HashedFile(Path(path))) as file:
                torch.save(state_dict, file)
            self.written[Path(path).name] = file.entry()
        except Exception as error:
            self.error = error

    def write(self, folder: Path, pending: Pending) -> None:
        (error, self.error), (written, self.written) = (self.error, None), (self.written, {})
        if error:
            raise error
        super().write(folder, pending)
        pending.files |= written
        pending.n_bytes += sum(entry["bytes"] for entry in written.values())


class HashedFile:
    """A new file that knows its size and hash, as `checkpoint.describe` gives them; closed, it is on the disk."""

    def __init__(self, path: Path):
        self._file, self._digest, self._size = path.open("wb"), hashlib.blake2b(digest_size=16), 0

    def write(self, content: bytes | memoryview) -> int:
        self._digest.update(content)
        self._size += len(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def entry(self) -> dict:
        return {"bytes": self._size, "blake2b": self._digest.hexdigest()}


@dataclass
class Pending:
    """A checkpoint that is being written, as this rank sees it."""

    step: int
    best: bool
    blocked: float  # seconds that training waited
    files: dict[str, dict] = field(default_factory=dict)  # written by this rank: size and hash
    n_bytes: int = 0  # written so far
    seconds: float = 0.0  # that writing took
    problem: str = "its writer died"  # until all is written
