"""Writing checkpoints while training goes on: each rank copies its part to host memory, and a thread writes the copy.

A checkpoint is complete or absent. It is written aside; when every rank has written and hashed its files, which the ranks
agree on in the loop's all-reduce, rank 0 adds the manifest and renames the folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from safetensors.torch import save
from torch.utils.serialization import config as serialization

from cromic_ds.errors import UserError
from cromic_ds.tracking import Tracker
from cromic_ds.tracking.log import FILE_ONLY
from cromic_ds.training.checkpoint import BUFFERS, MANIFEST, STATE, describe, retire_old, step_name, write_atomically
from cromic_ds.training.distributed import average_buffers, from_main, gather_objects, on_main, sum_over_ranks
from cromic_ds.training.ema import EMA_FILE, Ema
from cromic_ds.training.engine import Engine
from cromic_ds.training.state import TrainState

log = logging.getLogger(__name__)
PIECE = 1 << 22  # bytes written and hashed at a time
MOST_NAMED = 64  # ranks in a line of the log


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


class Checkpoints:
    """Saves a run's checkpoints, one at a time; every method is called on all ranks together.

    background: write while training goes on, from a copy of the rank's part in host memory; else training waits.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        keep_last: int,
        ema: Ema | None = None,
        background: bool = True,
        tracker: Tracker | None = None,
    ):
        self.engine, self.folder, self.keep_last, self.ema = engine, folder, keep_last, ema
        self.tracker = tracker or Tracker()
        self.shards = InMemory() if background else OnDisk()
        self.pending: Pending | None = None
        self._thread = self._remover = threading.Thread()
        engine.engine.checkpoint_engine = self.shards
        # DeepSpeed would put copies of a script beside the checkpoints; `cromic-ds export` does its work.
        engine.engine._copy_recovery_script = lambda folder: None

    @property
    def writing(self) -> bool:
        """Whether this rank still writes."""
        return self._thread.is_alive()

    def begin(self, state: TrainState, progress: Callable[[], None] = lambda: None) -> None:
        """Start the checkpoint of `state.step`, if there is none; waits until the one before it is complete.

        Args:
            progress: called as writing goes on.

        Raises:
            UserError: a checkpoint that could not be written.
        """
        self.finish(progress)
        name, rank = step_name(state.step), dist.get_rank()
        if from_main((self.folder / name).exists()):
            return
        start, aside = time.perf_counter(), self.folder / f".writing-{name}"
        on_main(self._prepare, aside)
        average_buffers(self.engine.model)
        with serialization.patch({"save.compute_crc32": False}):  # the manifest has better ones
            self.engine.engine.save_checkpoint(str(self.folder), tag=aside.name, save_latest=False)
        if self.ema:
            averages = self.ema.content()
            if rank == 0:
                self.shards.add(EMA_FILE, averages)
        if rank == 0:
            buffers = {name: b.contiguous().cpu() for name, b in self.engine.model.named_buffers()}
            values = {**state.to_dict(), "world_size": dist.get_world_size(), "stage": self.engine.stage}
            self.shards.add(BUFFERS, save(buffers))
            self.shards.add(STATE, json.dumps(values, indent=1).encode())
        self.pending = Pending(state.step, best=state.best_step == state.step, blocked=time.perf_counter() - start)
        self._thread = threading.Thread(target=self._write, args=(aside, self.pending), name="checkpoint", daemon=True)
        self._thread.start()
        if not self.shards.background:
            self.finish(progress)

    def finish(self, progress: Callable[[], None] = lambda: None) -> None:
        """Wait until the checkpoint that is being written, if any, is complete.

        Raises:
            UserError: it could not be written.
        """
        start, seen = time.perf_counter(), -1.0
        while self.pending:
            self._thread.join(0.05)  # no wait where this rank has written all; the sum waits for the others
            unfinished, n_bytes = sum_over_ranks([self.writing, self.pending.n_bytes])
            if n_bytes != seen:
                progress()
                seen = n_bytes
            if not unfinished:
                self.pending.blocked += time.perf_counter() - start
                self.complete()
        if self._remover.ident:
            self._remover.join()

    def complete(self) -> None:
        """Make a checkpoint of what all ranks have written by now.

        Raises:
            UserError: one of them could not write; nothing is left of the checkpoint.
        """
        pending, self.pending = self.pending, None
        aside = self.folder / f".writing-{step_name(pending.step)}"
        parts: list[Pending] = gather_objects(pending)
        if problems := [part.problem for part in parts if part.problem]:
            if dist.get_rank() == 0:
                shutil.rmtree(aside, ignore_errors=True)
            raise UserError(
                f"the checkpoint of step {pending.step} could not be written to {self.folder} ({problems[0]}); those before it "
                f"are whole: put that right and give the same command again"
            )
        on_main(self._publish, aside, parts)
        if dist.get_rank() == 0:
            self._report(pending.step, parts)

    def _prepare(self, aside: Path) -> None:
        try:
            for left_over in self.folder.glob(".writing-*"):
                shutil.rmtree(left_over)
            aside.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot save a checkpoint: {error}; those before it are whole") from None

    def _write(self, aside: Path, pending: Pending) -> None:
        """In a thread: it calls no collective, and what goes wrong is told to all ranks by `complete`."""
        start = time.perf_counter()
        try:
            self.shards.write(aside, pending)
            pending.problem = ""
        except Exception as error:
            pending.problem = f"host {socket.gethostname()}: {str(error) or type(error).__name__}"
        pending.seconds = time.perf_counter() - start

    def _publish(self, aside: Path, parts: list[Pending]) -> None:
        """On rank 0. Files that no rank named are DeepSpeed's own copies of what it offloaded to NVMe."""
        final, manifest = self.folder / step_name(parts[0].step), {}
        try:
            for part in parts:
                manifest |= part.files
            for path in aside.rglob("*"):
                if path.is_file() and (name := path.relative_to(aside).as_posix()) not in manifest:
                    manifest[name] = describe(path)
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
            aside.rename(final)
            write_atomically(self.folder / "latest", final.name)
            if parts[0].best:
                write_atomically(self.folder / "best", final.name)
            old = retire_old(self.folder, self.keep_last)
        except OSError as error:
            raise UserError(f"cannot save a checkpoint: {error}; those before it are whole") from None
        self._remover = threading.Thread(
            target=lambda: [shutil.rmtree(path) for path in old], name="removing", daemon=True
        )
        self._remover.start()

    def _report(self, step: int, parts: list[Pending]) -> None:
        slowest, largest = max(p.seconds for p in parts), max(p.n_bytes for p in parts)
        blocked, total = max(p.blocked for p in parts), sum(p.n_bytes for p in parts)
        values = {"seconds_blocked": blocked, "seconds_writing": slowest, "bytes_per_rank": largest, "bytes": total}
        self.tracker.log(step, values, "checkpoint")
        each = [
            f"rank {rank} {p.n_bytes / 1e6:.1f} MB in {p.seconds:.2f} s" for rank, p in enumerate(parts[:MOST_NAMED])
        ]
        log.info(
            "step %d written: %s", step, ", ".join(each) + ", …" * (len(parts) > MOST_NAMED), extra={FILE_ONLY: True}
        )


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
