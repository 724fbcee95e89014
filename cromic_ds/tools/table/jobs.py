"""Running one job: lock it, start its command, check its product, and write down the outcome."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from cromic_ds.data.store import read_meta
from cromic_ds.errors import UserError
from cromic_ds.ranks.launcher import free_port
from cromic_ds.ranks.processes import group_runs
from cromic_ds.tasks.results import read_result
from cromic_ds.tools.table.folder import JobState, TableFolder
from cromic_ds.tools.table.plan import TableJob

KILL_AFTER = 120.0
"""Seconds between asking a job to stop and killing it: a training saves a checkpoint first."""


@dataclass(frozen=True)
class Slot:
    """Where a job runs: the environment selects its devices and its number of threads."""

    environment: dict[str, str]
    processes: int = 1  # of a training


class Executor(Protocol):
    """What runs the jobs: `Local` or `Slurm`."""

    @property
    def slots(self) -> int | None:
        """How many jobs run at a time; None where that is not known."""
        ...

    @property
    def running(self) -> Sequence[str]:
        """Ids of the jobs that run."""
        ...

    @property
    def queued(self) -> Sequence[str]:
        """Ids of the jobs that were handed over and do not run yet."""
        ...

    def start(self, ready: list[TableJob]) -> None:
        """Start or queue as many of these jobs as possible."""
        ...

    def wait(self) -> list[TableJob]:
        """Return the jobs that have ended, after a short wait."""
        ...

    def close(self) -> None:
        """Wait for what must not be left behind."""
        ...


@dataclass
class Stop:
    """Whether the user or the scheduler asked to stop."""

    asked: bool = False
    at_once: bool = False

    def listen(self) -> Stop:
        """Set `asked` on SIGTERM, SIGUSR1 and SIGINT, and `at_once` on the second SIGINT."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.at_once = self.at_once or (self.asked and number == signal.SIGINT)
        self.asked = True


def check_product(job: TableJob, folder: Path) -> dict[str, Any]:
    """Return a summary of what the job made; for an evaluation, everything that the report shows. Raises UserError if the
    product is missing, or not what it should be."""
    product = folder / job.makes
    if not product.exists():
        raise UserError(f"{product} is missing")
    if job.trains:
        if not list(product.glob("*.safetensors")):
            raise UserError(f"{product}: an export without weights")
        return {}
    if job.stage == "evaluate":
        result = read_result(product)
        if result["task"] != job.task:
            raise UserError(f"{product}: a result of {result['task']}, not of {job.task}")
        kept = ("scores", "counts", "tokenization", "notes", "decoding")
        return {name: result.get(name) for name in kept} | {"split": result["data"].get("split")}
    if (job.stage, job.makes) == ("sample", "official"):  # this folder appears only when all its files are written
        return {}
    return {"records": {split: about["records"] for split, about in read_meta(product)["splits"].items()}}


def run_job(folder: TableFolder, job: TableJob, slot: Slot, stop: Stop, wait: bool = False) -> JobState:
    """Run a job to its end or until it is stopped; return what is written in its state.json. Raises Busy if another process
    runs the job; with `wait` this waits for its end instead."""
    with folder.lock(job, wait) as lock:
        state = folder.state(job)
        if state and state.state == "done":
            return state
        if state:
            with suppress(UserError):  # its runner was killed before it could write "done"
                state.result = check_product(job, folder.path)
                state.state, state.reason = "done", ""
                folder.write(job, state)
                return state
        spent, started = (state.seconds if state else 0.0), time.monotonic()
        host, fingerprint = socket.gethostname(), folder.fingerprints[job.id]
        state = JobState("started", fingerprint, list(job.command), host, 0, time.time(), spent)
        folder.write(job, state)
        reason = ""
        try:
            process = _start(folder, job, slot, lock)
            state.pid = process.pid
            folder.write(job, state)
            if (code := _wait_for(process, stop)) < 0:
                reason = f"ended by signal {-code} ({signal.strsignal(-code)})"
            elif code:
                reason = f"exit code {code}"
        except FileNotFoundError as error:
            reason = f"{error.filename}: no such command"
        state.seconds = spent + time.monotonic() - started
        if not reason:
            try:  # a training that was asked to stop, and some launchers, return 0 without a product
                state.result = check_product(job, folder.path)
            except UserError as error:
                reason = f"it exited with code 0, but {error}"
        if reason and stop.asked:
            state.state = "stopped"
        else:
            state.state, state.reason = "failed" if reason else "done", reason
        folder.write(job, state)
        return state


def _start(folder: TableFolder, job: TableJob, slot: Slot, lock: int) -> subprocess.Popen[bytes]:
    command = started_command(job, slot)
    with folder.job_file(job, "log.txt").open("ab") as log:
        log.write(f"=== {time.ctime()} on {socket.gethostname()}: {shlex.join(command)}\n".encode())
        log.flush()
        # The job gets its own session: Ctrl-C reaches it only through us, and our signals reach all processes of a launcher.
        return subprocess.Popen(
            command,
            cwd=folder.path,
            env=slot.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            start_new_session=True,
        )


def _wait_for(process: subprocess.Popen[bytes], stop: Stop) -> int:
    """Return the exit code once all processes of the job's session have ended; pass on a request to stop."""
    kill_at: float | None = None
    while (code := process.poll()) is None or group_runs(process.pid):
        if kill_at is None and (stop.asked or code is not None):
            kill_at = time.monotonic() + KILL_AFTER
            if stop.asked:
                _signal(process.pid, signal.SIGTERM)
        if stop.at_once or (kill_at is not None and time.monotonic() > kill_at):
            _signal(process.pid, signal.SIGKILL)
        time.sleep(0.1)
    return code


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def started_command(job: TableJob, slot: Slot) -> list[str]:
    """Return the command as it is started: `cromic-ds` by this Python, several processes by DeepSpeed's launcher."""
    program, *arguments = job.command
    if program != "cromic-ds":
        return [program, *arguments]
    if not job.trains or slot.processes == 1:
        return [sys.executable, "-m", "cromic_ds", *arguments]
    launcher = ["deepspeed", "--master_port", str(free_port()), "--log_level", "error"]
    if "CUDA_VISIBLE_DEVICES" not in slot.environment:  # the launcher would ignore it if it was given --num_gpus
        launcher += ["--num_gpus", str(slot.processes)]
    return [*launcher, "--no_local_rank", "--module", "cromic_ds", *arguments]


def last_lines(path: Path, count: int = 8) -> list[str]:
    """Return the last lines of a log that are not empty; the carriage returns of progress bars end lines too."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip()][-count:]
