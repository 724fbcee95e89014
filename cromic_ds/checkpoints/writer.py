"""Writing checkpoints while training goes on: each rank copies its part to host memory, and a thread writes the copy.

A checkpoint is complete or absent. It is written aside; when every rank has written and hashed its files, which the ranks
agree on in the loop's all-reduce, rank 0 adds the manifest and renames the folder.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save
from torch.utils.serialization import config as serialization

from cromic_ds.checkpoints.reader import BUFFERS, MANIFEST, STATE, retire_old, step_name
from cromic_ds.checkpoints.state import TrainState
from cromic_ds.engine.checkpoint_files import InMemory, OnDisk, Pending
from cromic_ds.engine.ema import Ema
from cromic_ds.engine.engine import Engine
from cromic_ds.errors import UserError
from cromic_ds.files import file_digest, write_atomically
from cromic_ds.ranks.collectives import average_buffers, from_main, gather_objects, on_main, sum_over_ranks
from cromic_ds.run_folder import EMA_FILE
from cromic_ds.tracking import Tracker
from cromic_ds.tracking.log import FILE_ONLY

log = logging.getLogger(__name__)


MOST_NAMED = 64  # ranks in a line of the log


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
        engine.deepspeed.checkpoint_engine = self.shards
        # DeepSpeed would put copies of a script beside the checkpoints; `cromic-ds export` does its work.
        engine.deepspeed._copy_recovery_script = lambda folder: None

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
            self.engine.deepspeed.save_checkpoint(str(self.folder), tag=aside.name, save_latest=False)
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
                    manifest[name] = file_digest(path)
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
