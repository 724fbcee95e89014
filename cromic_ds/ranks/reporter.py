"""`RankReporter`: what a rank reports to its watcher (watcher.py): where it is, and how it ended."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from cromic_ds.errors import UserError
from cromic_ds.files import read_json_if_there
from cromic_ds.ranks import watcher
from cromic_ds.ranks.launcher import Ranks
from cromic_ds.ranks.watcher import WaitingCode, claim_failure
from cromic_ds.run_folder import RunFolder

T = TypeVar("T")
log = logging.getLogger(__name__)


def forget_ranks(folder: RunFolder) -> None:
    """Remove the rank files of an earlier start. Call on rank 0, before any watcher writes into the folder."""
    shutil.rmtree(folder.ranks, ignore_errors=True)
    folder.ranks.mkdir()


class RankReporter:
    """Starts the watcher of this rank and reports to it; every call is progress.

    If the rank makes no progress for `timeout` seconds, its watcher notes the stack and ends the rank, and the watchers of the
    other ranks end theirs.
    """

    def __init__(self, ranks: Ranks, timeout: float, waiting: WaitingCode):
        self.ranks = ranks
        self.waiting = waiting
        self.folder: RunFolder | None = None
        self.attempt = ""
        self._state: dict[str, Any] = {"step": 0}
        self._stacks = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process lives)
        faulthandler.enable(self._stacks)  # for a bus error or the like
        faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
        about = {
            "rank": ranks.rank,
            "world_size": ranks.world_size,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
        }
        descriptor = self._stacks.fileno()
        arguments = [json.dumps(value) for value in (about, timeout, descriptor, waiting)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(watcher.__file__), *arguments], stdin=subprocess.PIPE, pass_fds=[descriptor]
        )

    def __enter__(self) -> RankReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Print an error once for the whole run: by the rank that had it first, and after the other ranks have ended."""
        if not isinstance(error, Exception):
            return
        if not self.fail(error):
            first = self._first_failure() or {"error": f"{type(error).__name__}: {error}"}
            log.error("ended because another rank failed: %s", first["error"])
            raise SystemExit(2 if isinstance(error, UserError) else 1) from None
        if isinstance(error, UserError) and self.folder is not None:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None

    def publish(self, folder: RunFolder, attempt: str) -> None:
        """Have the rank's state written into the run folder from now on.

        Args:
            attempt: the same on every rank, and different each time the run is started.
        """
        self.folder, self.attempt = folder, attempt
        self._send(folder=str(folder), attempt=attempt)

    def at(self, phase: str, step: int | None = None) -> None:
        """Report progress: the rank is in `phase` now and has finished `step` steps."""
        self._state |= {"phase": phase, "state": "running"}
        if step is not None:
            self._state["step"] = step
        self._send(**self._state)

    def each(self, items: Iterable[T], phase: str) -> Iterator[T]:
        """Yield the items and report progress before each one."""
        for item in items:
            self.at(phase)
            yield item
        self.at(phase)

    def end(self, state: str) -> None:
        """Report that the rank ends as it should: "finished", or "stopped" by a signal."""
        self._send(state=state, phase="ended", ended=True)

    def fail(self, error: Exception) -> bool:
        """Report that the rank ends with an error, to `cromic-ds status` and to the other ranks.

        Returns whether this is the first failure of the run. In that case it returns after the other ranks have ended, or after
        some seconds, so that what the caller prints is the last that the user sees.
        """
        last = " ".join(str(error).split()) or type(error).__name__
        trace = None
        waited = self._waited(error)
        if not isinstance(error, UserError):
            how = "failed while it waited for others" if waited else "failed"
            last = f"rank {self.ranks.rank} on host {socket.gethostname()} {how}: {type(error).__name__}: {last}"
            trace = "".join(traceback.format_exception(error))
        if self.folder is None:
            self._send(state="failed", phase="ended", error=last, traceback=trace, ended=True)
            return True
        if waited:
            # A connection broke. The rank at its other end is the one that failed, if any rank reports a failure.
            mark, end = self.folder.failure(self.attempt), time.monotonic() + watcher.GRACE
            while not mark.exists() and time.monotonic() < end:
                time.sleep(0.1)
            if first := self._first_failure():
                because = f"ended because rank {first['rank']} failed"
                self._send(state="killed", phase="ended", error=because, traceback=trace, ended=True)
                return False
        self._send(state="failed", phase="ended", error=last, traceback=trace, ended=True)
        about = {"rank": self.ranks.rank, "job": os.environ.get("SLURM_JOB_ID"), "error": last}
        if not claim_failure(self.folder.failure(self.attempt), about):
            return False
        end = time.monotonic() + watcher.LAST_WORD
        others = set(range(self.ranks.world_size)) - {self.ranks.rank}
        while others and time.monotonic() < end:
            time.sleep(0.2)
            others = {rank for rank in others if self._lives(self.folder, rank)}
        return True

    def _waited(self, error: Exception) -> bool:
        """Whether the error came out of a collective."""
        innermost = traceback.extract_tb(error.__traceback__)[-6:]
        if any(self.waiting.holds(frame.filename, self.waiting.collective) for frame in innermost):
            return True
        return isinstance(error, RuntimeError) and bool(re.search("gloo|nccl", str(error), re.IGNORECASE))

    def _first_failure(self) -> dict[str, Any] | None:
        return read_json_if_there(self.folder.failure(self.attempt)) if self.folder else None

    def _lives(self, folder: RunFolder, rank: int) -> bool:
        state = read_json_if_there(folder.rank_state(rank)) or {}
        return state.get("state") in watcher.ALIVE and state.get("attempt") == self.attempt

    def _send(self, **values: Any) -> None:
        try:
            assert self._process.stdin
            self._process.stdin.write(json.dumps(values).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # the run continues without a watcher
            pass
