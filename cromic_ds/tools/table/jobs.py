"""Running one job: hold it, start its command, look at what it made, and write down what became of it."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from cromic_ds.errors import UserError
from cromic_ds.tools.table.folder import Folder, State
from cromic_ds.tools.table.plan import Job
from cromic_ds.tools.table.products import look_at
from cromic_ds.tools.table.settings import PROJECT

Look = Callable[[Job, Path], dict]
LOG_LINES = 8  # of a failed job, shown
SCRIPTS = ("pretrain.py", "finetune.py")
KILL_AFTER = 120.0
"""Seconds between asking a job to stop and killing it: a training saves a checkpoint first."""


@dataclass(frozen=True)
class Slot:
    """Where a job runs: the environment says on which devices, with how many threads."""

    environment: dict[str, str]
    processes: int = 1  # of a training


@dataclass
class Stop:
    """What the user or the scheduler asked for."""

    asked: bool = False
    at_once: bool = False

    def listen(self) -> Stop:
        """Ask on SIGTERM, SIGUSR1 and SIGINT; the second SIGINT means at once."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._heard)
        return self

    def _heard(self, number: int, _frame) -> None:
        self.at_once = self.at_once or (self.asked and number == signal.SIGINT)
        self.asked = True


def run_job(folder: Folder, job: Job, slot: Slot, stop: Stop, *, wait: bool = False, look: Look = look_at) -> State:
    """Bring a job to its end, or to a stop; returns what is written in its state.json.

    Args:
        wait: wait while another process runs it, instead of raising Busy.
    """
    with folder.lock(job, wait) as lock:
        state = folder.state(job)
        if state and state.state == "done":
            return state
        if state and (result := _left_behind(folder, job, look)) is not None:
            state.state, state.reason, state.result = "done", "", result
            folder.write(job, state)
            return state
        spent, started = (state.seconds if state else 0.0), time.monotonic()
        state = State(
            "started", folder.fingerprints[job.id], list(job.command), socket.gethostname(), 0, time.time(), spent
        )
        folder.write(job, state)
        try:
            process = _start(folder, job, slot, lock)
            state.pid = process.pid
            folder.write(job, state)
            code = _end_of(process, stop)
        except FileNotFoundError as error:
            code = f"{error.filename}: no such command"
        state.seconds = spent + time.monotonic() - started
        _judge(state, code, stop, folder, job, look)
        folder.write(job, state)
        return state


def _start(folder: Folder, job: Job, slot: Slot, lock: int) -> subprocess.Popen:
    command = executable(job.command, slot)
    with folder.at(job, "log.txt").open("ab") as log:
        log.write(f"=== {time.ctime()} on {socket.gethostname()}: {shlex.join(command)}\n".encode())
        log.flush()
        # In a session of its own: Ctrl-C reaches it through us, and our signals reach all of a launcher's processes.
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


def _left_behind(folder: Folder, job: Job, look: Look) -> dict | None:
    """What an earlier start finished, though its runner was killed before it could write that down."""
    with suppress(UserError):
        return look(job, folder.path)
    return None


def _judge(state: State, code: int | str, stop: Stop, folder: Folder, job: Job, look: Look) -> None:
    """An exit code of 0 is not enough: a training that was asked to stop, and some launchers, end so unfinished.

    code: as Popen has it, or why the command could not be started.
    """
    try:
        if code:
            raise UserError(_why(code))
        state.result = look(job, folder.path)
        state.state = "done"
    except UserError as error:
        state.state = "stopped" if stop.asked else "failed"
        state.reason = "" if stop.asked else str(error) if code else f"it exited with code 0, but {error}"


def _why(code: int | str) -> str:
    if isinstance(code, str):
        return code
    return f"ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"


def _end_of(process: subprocess.Popen, stop: Stop) -> int:
    """The exit code, once all processes of its session are gone; passes on a request to stop."""
    patience_ends: float | None = None
    while process.poll() is None or _alive(process.pid):
        if patience_ends is None and (stop.asked or process.returncode is not None):
            patience_ends = time.monotonic() + KILL_AFTER
            if stop.asked:
                _signal(process.pid, signal.SIGTERM)
        if stop.at_once or (patience_ends is not None and time.monotonic() > patience_ends):
            _signal(process.pid, signal.SIGKILL)
        time.sleep(0.1)
    return process.returncode


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _alive(group: int) -> bool:
    """Whether a process group has a process that still runs (a launcher can end before those that it started)."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def executable(command: tuple[str, ...], slot: Slot) -> list[str]:
    """The command as it is started here: the project's scripts by this Python, or by a launcher for several processes."""
    name, *arguments = command
    if name not in SCRIPTS:
        return [name, *arguments]
    script = str(PROJECT / name)
    if slot.processes == 1:
        return [sys.executable, script, *arguments]
    launcher = ["deepspeed", "--master_port", str(free_port()), "--log_level", "error"]
    if "CUDA_VISIBLE_DEVICES" not in slot.environment:  # given --num_gpus the launcher would ignore it
        launcher += ["--num_gpus", str(slot.processes)]
    return [*launcher, script, *arguments]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def last_lines(path: Path, count: int = LOG_LINES) -> list[str]:
    """The end of a log; carriage returns of progress bars end lines too."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip()][-count:]
