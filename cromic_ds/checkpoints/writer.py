"""Writing checkpoints while training continues: each rank copies its part to host memory, and a thread writes the copy.

A checkpoint is complete or absent. It is written under a temporary name. Once every rank has written and hashed its files,
which they agree on in the loop's all-reduce, rank 0 adds the manifest and renames the folder.
"""

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

from cromic_ds.checkpoints.state import TrainState
from cromic_ds.engine.checkpoint_files import InMemory, OnDisk, Pending
from cromic_ds.engine.ema import Ema
from cromic_ds.engine.engine import Engine
from cromic_ds.errors import UserError
from cromic_ds.files import FileDigest, file_digest, write_atomically
from cromic_ds.ranks.collectives import average_buffers, from_main, gather_objects, on_main, sum_over_ranks
from cromic_ds.run_folder import BUFFERS, EMA_FILE, MANIFEST, STATE, RunFolder, step_name
from cromic_ds.tracking import Tracker
from cromic_ds.tracking.log import FILE_ONLY

log = logging.getLogger(__name__)
MOST_NAMED = 64  # ranks in a line of the log


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time. All methods are collective.

    Args:
        keep_last: number of newest checkpoints to keep; the best one stays as well.
        background: write while training continues, from a copy of the rank's part in host memory; otherwise training waits.
    """

    def __init__(
        self,
        engine: Engine,
        run: RunFolder,
        keep_last: int,
        ema: Ema | None = None,
        background: bool = True,
        tracker: Tracker | None = None,
    ):
        self.engine = engine
        self.run = run
        self.keep_last = keep_last
        self.ema = ema
        self.tracker = tracker or Tracker()
        self.shards = InMemory() if background else OnDisk()
        self.pending: Pending | None = None
        self._thread = self._remover = threading.Thread()
        engine.deepspeed.checkpoint_engine = self.shards
        # DeepSpeed would copy a script to the checkpoints; `cromic-ds export` does the same.
        engine.deepspeed._copy_recovery_script = lambda folder: None

    @property
    def writing(self) -> bool:
        """Whether this rank is still writing."""
        return self._thread.is_alive()

    def begin(self, state: TrainState, progress: Callable[[], None] = lambda: None) -> None:
        """Start the checkpoint of `state.step` unless it exists. Waits until the one before it is complete.

        Args:
            progress: called while it waits and bytes are written.

        Raises:
            UserError: a checkpoint could not be written.
        """
        self.finish(progress)
        if from_main(self.run.checkpoint(state.step).exists()):
            return
        start, rank, aside = time.perf_counter(), dist.get_rank(), self.run.temporary(step_name(state.step))
        on_main(self._make_folder, aside)
        average_buffers(self.engine.model)
        with serialization.patch({"save.compute_crc32": False}):  # pyright: ignore[reportAttributeAccessIssue]
            # The manifest has better checksums.
            self.engine.deepspeed.save_checkpoint(str(aside.parent), tag=aside.name, save_latest=False)
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
            self._thread.join(0.05)  # returns at once if this rank has written everything; the sum waits for the others
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
        """Publish the checkpoint that all ranks have finished writing.

        Raises:
            UserError: a rank could not write; nothing is left of the checkpoint.
        """
        assert self.pending, "no checkpoint is being written"
        pending, self.pending = self.pending, None
        aside = self.run.temporary(step_name(pending.step))
        parts: list[Pending] = gather_objects(pending)
        if problems := [part.problem for part in parts if part.problem]:
            if dist.get_rank() == 0:
                shutil.rmtree(aside, ignore_errors=True)
            raise UserError(
                f"the checkpoint of step {pending.step} could not be written to {self.run.checkpoints} ({problems[0]}); "
                "earlier checkpoints are whole: fix this and run the same command again"
            )
        on_main(self._publish, aside, parts)
        if dist.get_rank() == 0:
            self._report(pending.step, parts)

    def _make_folder(self, aside: Path) -> None:
        try:
            for left_over in self.run.temporaries():
                shutil.rmtree(left_over)
            aside.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot save a checkpoint: {error}; earlier checkpoints are whole") from None

    def _write(self, aside: Path, pending: Pending) -> None:
        """Write this rank's files. Runs in a thread, so it calls no collective; `complete` reports its problem to all ranks."""
        start = time.perf_counter()
        try:
            self.shards.write(aside, pending)
            pending.problem = ""
        except Exception as error:
            pending.problem = f"host {socket.gethostname()}: {str(error) or type(error).__name__}"
        pending.seconds = time.perf_counter() - start

    def _publish(self, aside: Path, parts: list[Pending]) -> None:
        """Add the manifest and give the checkpoint its name. Called on rank 0."""
        final = self.run.checkpoint(parts[0].step)
        manifest: dict[str, FileDigest] = {}
        try:
            for part in parts:
                manifest |= part.files
            for path in aside.rglob(
                "*"
            ):  # files that no rank wrote here: DeepSpeed's copies of what it offloaded to NVMe
                if path.is_file() and (name := path.relative_to(aside).as_posix()) not in manifest:
                    manifest[name] = file_digest(path)
            write_atomically(aside / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
            aside.rename(final)
            write_atomically(self.run.latest, final.name)
            if parts[0].best:
                write_atomically(self.run.best, final.name)
            old = retire_old(self.run, self.keep_last)
        except OSError as error:
            raise UserError(f"cannot save a checkpoint: {error}; earlier checkpoints are whole") from None
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


def retire_old(run: RunFolder, keep_last: int) -> list[Path]:
    """Give all checkpoints but the newest `keep_last` and the best a temporary name; return the folders to remove.

    Because they are renamed first, a folder with a step's name is always complete, even if its removal is interrupted.
    """
    names = run.step_names()
    keep = set(names[-max(keep_last, 1) :])
    if run.best.exists():
        keep.add(run.best.read_text().strip())
    return [(run.checkpoints / name).rename(run.temporary(f"old-{name}")) for name in names if name not in keep]
