"""Real ranks that die, stop, hang and fail, without a launcher that would end the other ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from helpers.launching import QUIET, Job, losses, run_to_end

pytestmark = pytest.mark.slow
FAULTY = "tests/helpers/faulty.py"
HOST = socket.gethostname()


def arguments(store: Path, out: Path, *more: str) -> list[str]:
    small = ["--model.preset", "tiny", "--precision", "fp32", "--loop.global_batch", "8", "--checkpoint.every", "4"]
    how = ["--eval.generate", "0", "--eval.examples", "8", "--guard.hang_timeout", "6", "--loop.steps", "400"]
    return ["--data.path", str(store), "--out", str(out), *small, *how, *QUIET, *more]


def state(run: Path, rank: int) -> dict:
    return json.loads((run / "ranks" / f"rank-{rank:04d}.json").read_text())


def ended(job: Job, timeout: float = 60) -> list[int]:
    """Return the exit codes; no rank may be left waiting."""
    codes = job.wait(timeout)
    end = time.monotonic() + 15
    while any(watchers_of(job)) and time.monotonic() < end:  # a watcher may print last
        time.sleep(0.1)
    assert not any(watchers_of(job))
    return codes


def watchers_of(job: Job) -> list[int]:
    pids = {str(p.pid) for p in job.processes}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if any("watcher.py" in part for part in command) and any(f'"pid": {pid},' in " ".join(command) for pid in pids):
            found.append(int(folder.name))
    return found


def test_a_killed_rank_ends_the_run_and_is_named_and_the_next_start_resumes(store, tmp_path):
    out, whole, steps = tmp_path / "run", tmp_path / "whole", ["--loop.steps", "40"]
    job = Job(tmp_path, arguments(store, out, *steps), ranks=2)
    job.wait_for_step(out, 6)
    job.processes[1].send_signal(signal.SIGKILL)
    codes = ended(job)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, None)
    assert (
        f"rank 1 on host {HOST} (pid {job.processes[1].pid}) died without reporting an error after step" in job.output()
    )
    assert state(out, 1)["state"] == "killed"
    assert not (out / "finished.json").exists()
    run_to_end(tmp_path / "again", arguments(store, out, *steps), ranks=2)
    run_to_end(tmp_path / "w", arguments(store, whole, *steps), ranks=2)
    assert losses(out) == losses(whole)
    assert (out / "finished.json").exists()
    assert state(out, 1)["state"] == "finished"


def test_a_stopped_rank_is_found_named_and_ended(store, tmp_path):
    out = tmp_path / "run"
    job = Job(tmp_path, arguments(store, out), ranks=2)
    job.wait_for_step(out, 6)
    os.kill(job.processes[1].pid, signal.SIGSTOP)
    assert 0 not in ended(job)
    assert (
        f"rank 1 on host {HOST} (pid {job.processes[1].pid}) is stopped by a signal: no progress for 6 s"
        in job.output()
    )
    assert "File" in state(out, 1)["traceback"]
    assert state(out, 0)["error"] == "ended because rank 1 failed"


def test_a_rank_that_hangs_outside_of_a_collective_is_named_with_its_stack(store, tmp_path):
    out = tmp_path / "run"
    job = Job(tmp_path, arguments(store, out), ranks=2, script=FAULTY, FAULT="hang:1:5")
    assert 0 not in ended(job, 120)
    assert "hangs outside of any collective: no progress for 6 s after step 5, while reading data" in job.output()
    assert "in strike" in state(out, 1)["traceback"]
    assert (state(out, 1)["state"], state(out, 0)["state"]) == ("hung", "killed")


@pytest.mark.parametrize(
    ("fault", "error"),
    [("raise", "RuntimeError: as the test wished"), pytest.param("memory", "Error", marks=pytest.mark.long)],
)
def test_the_first_traceback_is_the_only_one(store, tmp_path, fault, error):
    out = tmp_path / "run"
    job = Job(
        tmp_path, arguments(store, out, "--checkpoint.every", "null"), ranks=2, script=FAULTY, FAULT=f"{fault}:1:5"
    )
    assert 0 not in ended(job, 120)
    log = job.logs[1].read_text()
    assert "Traceback" in log
    assert error in log
    assert "Traceback" not in job.logs[0].read_text()
    assert f"rank 1 on host {HOST} failed" in state(out, 1)["error"]
    assert "Traceback" in state(out, 1)["traceback"]


def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_on_all(store, tmp_path):
    out = tmp_path / "run"
    job = Job(tmp_path, arguments(store, out, "--loop.steps", "8"), ranks=2, script=FAULTY, FAULT="nan:1:5")
    assert job.wait() == [0, 0], job.output()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["skipped_steps"] for line in steps] == [0] * 5 + [1] * 3
    assert losses(out)[6] < 20


def test_a_second_job_on_the_folder_is_refused_and_a_dead_ones_lock_is_not(store, tmp_path):
    out = tmp_path / "run"
    first = Job(tmp_path / "1", arguments(store, out), ranks=1)
    first.wait_for_step(out, 2)
    second = Job(tmp_path / "2", arguments(store, out), ranks=1)
    assert second.wait(60) == [2]
    assert f"is in use by another job (host {HOST}, pid {first.processes[0].pid})" in second.output()
    assert first.processes[0].poll() is None
    first.kill()
    run_to_end(tmp_path / "3", arguments(store, out, "--loop.steps", "4"), ranks=1)
    assert not (out / "lock.json").exists()
