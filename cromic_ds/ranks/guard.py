"""`Guard`: what a rank tells the process that watches it (guard_process.py): where it is, and how it ended."""

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
from pathlib import Path
from typing import TypeVar

from cromic_ds.errors import UserError
from cromic_ds.ranks import guard_process
from cromic_ds.ranks.guard_process import WaitingCode
from cromic_ds.ranks.launcher import Ranks

T = TypeVar("T")
log = logging.getLogger(__name__)


def clear(folder: Path) -> None:
    """Forget the ranks of an earlier start. Called on rank 0, before any guard writes into the folder."""
    shutil.rmtree(folder / "ranks", ignore_errors=True)
    (folder / "ranks").mkdir()


class Guard:
    """Starts the watching process; every call tells it of progress.

    timeout: seconds without progress after which the rank counts as hanging. Its guard then notes the stack, ends the rank, and
    the guards of the others end theirs.
    """

    def __init__(self, ranks: Ranks, timeout: float, waiting: WaitingCode):
        self.ranks, self.waiting = ranks, waiting
        self.folder: Path | None = None
        self.attempt = ""
        self._state = {"step": 0}
        self._stacks = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process lives)
        faulthandler.enable(self._stacks)  # for a bus error or the like
        faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
        about = {
            **{"rank": ranks.rank, "world_size": ranks.world_size, "host": socket.gethostname(), "pid": os.getpid()},
            "job": os.environ.get("SLURM_JOB_ID"),
        }
        descriptor = self._stacks.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-I", guard_process.__file__, *map(json.dumps, (about, timeout, descriptor, waiting))],
            stdin=subprocess.PIPE,
            pass_fds=[descriptor],
        )

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _trace) -> None:
        """An error is told once for the whole run, by the rank that it came to first and after the others have ended."""
        if not isinstance(error, Exception):
            return
        first = self.fail(error)
        if not first:
            told = guard_process.read(self.mark) or {"error": f"{type(error).__name__}: {error}"}
            log.error("ended because another rank failed: %s", told["error"])
            raise SystemExit(2 if isinstance(error, UserError) else 1) from None
        if isinstance(error, UserError) and self.folder is not None:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None

    def publish(self, folder: Path, attempt: str) -> None:
        """The run folder is this run's: from now on the rank's state stands in it.

        attempt: the same on every rank, and another one each time the run is started.
        """
        self.folder, self.attempt = folder, attempt
        self._tell(folder=str(folder), attempt=attempt)

    def at(self, phase: str, step: int | None = None) -> None:
        """Progress: the rank is in `phase` now, with so many steps done."""
        self._state |= {"phase": phase, "state": "running"}
        if step is not None:
            self._state["step"] = step
        self._tell(**self._state)

    def each(self, items: Iterable[T], phase: str) -> Iterator[T]:
        """The items; each one asked for is progress."""
        for item in items:
            self.at(phase)
            yield item
        self.at(phase)

    def end(self, state: str) -> None:
        """Nothing more will come: "finished", or "stopped" by a signal."""
        self._tell(state=state, phase="ended", ended=True)

    def fail(self, error: Exception) -> bool:
        """The rank ends with an error: note it where status and the other ranks find it.

        Returns whether it is the first failure of the run, and then only after the other ranks have ended, or after some
        seconds: what is printed now is the last that the user sees.
        """
        last = " ".join(str(error).split()) or type(error).__name__
        trace = None
        innermost = traceback.extract_tb(error.__traceback__)[-6:]
        waited = any(self.waiting.holds(frame.filename, self.waiting.collective) for frame in innermost)
        waited |= isinstance(error, RuntimeError) and bool(re.search("gloo|nccl", str(error), re.IGNORECASE))
        if not isinstance(error, UserError):
            how = "failed while it waited for others" if waited else "failed"
            last = f"rank {self.ranks.rank} on host {socket.gethostname()} {how}: {type(error).__name__}: {last}"
            trace = "".join(traceback.format_exception(error))
        if self.folder is None:
            self._tell(state="failed", phase="ended", error=last, traceback=trace, ended=True)
            return True
        mark = self.mark
        if waited:
            # A connection that broke: the rank at its other end is the one that failed, if anybody says so.
            end = time.monotonic() + guard_process.GRACE
            while not mark.exists() and time.monotonic() < end:
                time.sleep(0.1)
            if first := guard_process.read(mark):
                error = f"ended because rank {first['rank']} failed"
                self._tell(state="killed", phase="ended", error=error, traceback=trace, ended=True)
                return False
        self._tell(state="failed", phase="ended", error=last, traceback=trace, ended=True)
        try:
            with mark.open("x", encoding="utf-8") as f:
                first = {"rank": self.ranks.rank, "job": os.environ.get("SLURM_JOB_ID"), "error": last}
                json.dump(first, f, ensure_ascii=False)
        except FileExistsError:
            return False
        except OSError:
            return True
        end = time.monotonic() + guard_process.LAST_WORD
        others = set(range(self.ranks.world_size)) - {self.ranks.rank}
        while others and time.monotonic() < end:
            time.sleep(0.2)
            others = {r for r in others if self._lives(r)}
        return True

    @property
    def mark(self) -> Path:
        """Where the first failure of the run stands."""
        return self.folder / "ranks" / f"failed-{self.attempt}.json"

    def _lives(self, rank: int) -> bool:
        state = guard_process.read(self.folder / "ranks" / f"rank-{rank:04d}.json") or {}
        return state.get("state") in ("starting", "running") and state.get("attempt") == self.attempt

    def _tell(self, **values) -> None:
        try:
            self._process.stdin.write(json.dumps(values).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # without a guard the run goes on
            pass
