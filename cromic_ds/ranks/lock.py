"""One job at a time in a run folder: RUN/lock.json names its holder, whose watcher changes the file every few seconds."""

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cromic_ds.errors import UserError
from cromic_ds.files import read_json_if_there
from cromic_ds.ranks.processes import boot_id, start_time
from cromic_ds.ranks.watcher import BEAT
from cromic_ds.run_folder import RunFolder

WATCHED = 3 * BEAT  # seconds after which a holder on another host whose lock did not change counts as dead


def acquire(folder: RunFolder, attempt: str, environ: Mapping[str, str] = os.environ) -> None:
    """Take the folder for this process. Call on rank 0.

    A holder on another host is alive if its lock changes. Times are not compared, because clocks differ.

    Raises:
        UserError: another job holds it and is alive.
    """
    mine = new_holder(attempt, environ)
    for _ in range(3):
        try:
            with folder.lock.open("x") as file:
                json.dump(mine, file)
            return
        except FileExistsError:
            pass
        holder = read_json_if_there(folder.lock)
        if holder and holder_lives(folder.lock, holder, mine):
            job = f", Slurm job {holder['job']}" if holder.get("job") else ""
            raise UserError(
                f"{folder} is in use by another job (host {holder['host']}, pid {holder['pid']}{job}): wait for it, end it, or "
                "use another run folder (--out)"
            )
        # Renamed, not overwritten: of two jobs that find the same stale lock, only one can rename it.
        stale = folder.stale_lock(attempt)
        try:
            folder.lock.rename(stale)
        except FileNotFoundError:
            continue
        stale.unlink()
    raise UserError(f"{folder}: other jobs keep taking {folder.lock.name}: use another run folder (--out)")


def release(folder: RunFolder, attempt: str) -> None:
    """Give the folder back, if this start of the run still holds it."""
    holder = read_json_if_there(folder.lock)
    if holder and holder.get("attempt") == attempt:
        folder.lock.unlink(missing_ok=True)


def new_holder(attempt: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what identifies this process, also against a later process with the same number."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
        "boot": boot_id(),
        "job": environ.get("SLURM_JOB_ID"),
        "restart": environ.get("SLURM_RESTART_COUNT"),
        "attempt": attempt,
        "beat": 0,
    }


def holder_lives(lock: Path, holder: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Return whether the job that holds a lock is alive; for a holder on another host this takes some seconds."""
    if (holder.get("host"), holder.get("boot")) == (mine["host"], mine["boot"]):
        return start_time(holder.get("pid")) == holder.get("started")
    if mine["job"] and holder.get("job") == mine["job"] and holder.get("restart") != mine["restart"]:
        return False  # this job before it was requeued: Slurm has ended that start
    end = time.monotonic() + WATCHED
    while time.monotonic() < end:
        now = read_json_if_there(lock)
        if now is None:
            return False
        if now != holder:
            return True
        time.sleep(0.5)
    return False
