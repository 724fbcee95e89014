"""The files that DeepSpeed writes into a checkpoint, kept in memory or hashed while they are written."""

import io
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from cromic_ds.files import PIECE_BYTES, DigestedFile, FileDigest


@dataclass
class Pending:
    """A checkpoint that is being written, as this rank sees it."""

    step: int
    best: bool
    blocked: float  # seconds that training waited
    files: dict[str, FileDigest] = field(default_factory=dict)  # that this rank has written
    n_bytes: int = 0  # written so far
    seconds: float = 0.0  # that writing took
    problem: str = "its writer died"  # empty once everything is written


class InMemory(TorchCheckpointEngine):
    """Keeps DeepSpeed's files as bytes until `write`.

    The memory is used again for the next checkpoint: touching new memory costs as much as ten copies.
    """

    background = True

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, io.BytesIO] = {}

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        memory = self.files.setdefault(Path(path).name, io.BytesIO())
        memory.seek(0)
        torch.save(state_dict, memory)
        memory.truncate()

    def add(self, name: str, content: bytes) -> None:
        self.files[name] = io.BytesIO(content)

    def write(self, folder: Path, pending: Pending) -> None:
        for name, memory in self.files.items():
            with closing(DigestedFile(folder / name)) as file, memory.getbuffer() as content:
                for first in range(0, len(content), PIECE_BYTES):
                    pending.n_bytes += file.write(content[first : first + PIECE_BYTES])
            pending.files[name] = file.digest()


class OnDisk(InMemory):
    """Writes DeepSpeed's files at once; `write` writes the small ones that were added."""

    background = False

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[str, FileDigest] = {}
        self.error: Exception | None = None

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Write one file. An error is kept for `write`: raised here, the other ranks would wait for this one."""
        try:
            with closing(DigestedFile(Path(path))) as file:
                torch.save(state_dict, cast("IO[bytes]", file))  # it calls `write` and `flush` alone
            self.written[Path(path).name] = file.digest()
        except Exception as error:
            self.error = error

    def write(self, folder: Path, pending: Pending) -> None:
        error, written = self.error, self.written
        self.error, self.written = None, {}
        if error:
            raise error
        super().write(folder, pending)
        pending.files |= written
        pending.n_bytes += sum(file["bytes"] for file in written.values())
