"""One job at a time in a run folder: RUN/lock.json names its holder, whose guard writes it anew every few seconds."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from cromic_ds.errors import UserError
from cromic_ds.ranks.guard_process import BEAT, read

WATCHED = 3 * BEAT  # seconds after which a holder on another host that wrote nothing counts as dead


def acquire(folder: Path, attempt: str, environ: Mapping[str, str] = os.environ) -> None:
    """Take the folder for this process. Called on rank 0.

    Whether a holder on another host lives is seen from its lock changing, not from a time in it: clocks differ.

    Raises:
        UserError: another job that lives holds it.
    """
    lock, mine = folder / "lock.json", describe(attempt, environ)
    for _ in range(3):
        try:
            with lock.open("x") as f:
                json.dump(mine, f)
            return
        except FileExistsError:
            pass
        holder = read(lock)
        if holder and lives(lock, holder, mine):
            job = f", Slurm job {holder['job']}" if holder.get("job") else ""
            raise UserError(
                f"{folder} is in use by another job (host {holder['host']}, pid {holder['pid']}{job}): wait for it, end it, or "
                "use another run folder (--out)"
            )
        # Renamed away, not written over: of two jobs that find the same stale lock only one gets it out of the way.
        stale = lock.with_name(f".lock-stale-{attempt}")
        try:
            lock.rename(stale)
        except FileNotFoundError:
            continue
        stale.unlink()
    raise UserError(f"{folder}: {lock.name} is taken again and again by other jobs: use another run folder (--out)")


def release(folder: Path, attempt: str) -> None:
    holder = read(folder / "lock.json")
    if holder and holder.get("attempt") == attempt:
        (folder / "lock.json").unlink(missing_ok=True)


def describe(attempt: str, environ: Mapping[str, str]) -> dict:
    """This process, and what tells it from a later one with the same number."""
    return {
        **{"host": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid()), "boot": boot()},
        **{"job": environ.get("SLURM_JOB_ID"), "restart": environ.get("SLURM_RESTART_COUNT")},
        **{"attempt": attempt, "beat": 0},
    }


def lives(lock: Path, holder: dict, mine: dict) -> bool:
    if (holder.get("host"), holder.get("boot")) == (mine["host"], mine["boot"]):
        return started(holder.get("pid")) == holder.get("started")
    if mine["job"] and holder.get("job") == mine["job"] and holder.get("restart") != mine["restart"]:
        return False  # this very job before it was requeued: Slurm has ended it
    end = time.monotonic() + WATCHED
    while time.monotonic() < end:
        now = read(lock)
        if now is None:
            return False
        if now != holder:
            return True
        time.sleep(0.5)
    return False


def started(pid: int | None) -> str | None:
    """When a process began, in clock ticks since the host's start; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def boot() -> str:
    """The host's start; pids and start times of another one do not compare. Containers of a host share it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
