"""Jobs in Slurm: what is ready is submitted as a job array, each task of which runs `cromic-ds table … --job ID`.

An evaluation is submitted together with the fine-tuning that it waits for, so that the queue goes on without this
process. Whether a job is done is read from the table's folder; Slurm is only asked which tasks it still holds.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from cromic_ds.errors import UserError
from cromic_ds.tools.table.folder import Folder, State, write_aside
from cromic_ds.tools.table.jobs import Stop
from cromic_ds.tools.table.plan import Job

POLL_SECONDS = 15.0
GRACE_SECONDS = 90.0
"""After a task has left the queue, until its job counts as lost: shared file systems show new files late."""
MOST_LOST = 3
"""Times that Slurm may end a job without a word before it counts as failed."""
LARGEST_ARRAY = 1000  # Slurm's default MaxArraySize is 1001


class Slurm:
    """Submits arrays, and watches them."""

    def __init__(self, folder: Folder, arguments: str, at_a_time: int, stop: Stop, poll: float = POLL_SECONDS):
        """arguments: of sbatch, for every array; at_a_time: tasks of an array that may run together, 0 = all."""
        self.folder, self.stop, self.poll = folder, stop, poll
        self.arguments, self.at_a_time = shlex.split(arguments), at_a_time
        self.slots = at_a_time
        self._tasks: dict[str, str] = {}  # job id → task id in Slurm (123_4)
        self._held: dict[str, str] = {}  # task id → state in Slurm
        self._gone: dict[str, float] = {}  # job id → since when its task is not in the queue
        self._losses: dict[str, int] = {}  # job id → how often its task was ended before it was done
        submitted = {job.id: task for job in folder.jobs if (task := self._submission(job).get("task"))}
        if submitted:
            self._held = held_tasks()
            self._tasks = {id: task for id, task in submitted.items() if task in self._held}

    @property
    def running(self) -> list[str]:
        return [] if self.stop.asked else [id for id, task in self._tasks.items() if self._held.get(task) == "RUNNING"]

    @property
    def queued(self) -> list[str]:
        """With those of which it is not yet known how they ended."""
        return [] if self.stop.asked else [id for id, task in self._tasks.items() if self._held.get(task) != "RUNNING"]

    def start(self, ready: list[Job]) -> None:
        """Submit them, and the jobs that wait for nothing but one of them.

        Raises:
            UserError: Slurm refuses, and holds nothing that is worth watching; else it is asked again later.
        """
        try:
            for first in range(0, len(ready), LARGEST_ARRAY):
                jobs = dict(enumerate(ready[first : first + LARGEST_ARRAY]))
                array = self._submit(jobs)
                if following := self._following(jobs):
                    self._submit(following, after=array)
        except UserError as error:
            if not self._tasks:
                raise
            print(f"warning: {error}", file=sys.stderr)

    def _following(self, jobs: dict[int, Job]) -> dict[int, Job]:
        """For each task of an array the one job, if there is one, that can be started when it is done."""
        states = self.folder.states()
        following = {}
        for index, job in jobs.items():
            done = {job.id} | {id for id, state in states.items() if state and state.state == "done"}
            waiting = [j for j in self.folder.jobs if job.id in j.needs and done.issuperset(j.needs)]
            if len(waiting) == 1 and waiting[0].id not in self._tasks and not states[waiting[0].id]:
                following[index] = waiting[0]
        return following

    def _submit(self, jobs: dict[int, Job], after: str = "") -> str:
        """The array's id; its task of each index runs that job."""
        folder = self.folder.path / "slurm"
        folder.mkdir(exist_ok=True)
        script = folder / f"array-{len(list(folder.glob('array-*.sh'))) + 1:04d}.sh"
        write_aside(script, array_script(self.folder.path, jobs))
        command = ["sbatch", "--parsable", *array_arguments(folder, jobs, self.at_a_time, after), *self.arguments]
        array = call([*command, str(script)]).strip().split(";")[0]  # id;cluster
        for index, job in jobs.items():
            task = f"{array}_{index}"
            write_aside(self.folder.at(job, "slurm.json"), json.dumps({"task": task}))
            self._tasks[job.id], self._held[task] = task, "PENDING"
        return array

    def wait(self) -> list[Job]:
        """Jobs that have come to an end, after a while."""
        self._pause()
        self._ask()
        ended = []
        for id in list(self._tasks):
            job, state = self.folder.by_id[id], self.folder.state(self.folder.by_id[id])
            if state and state.state in ("done", "failed"):
                self._forget(job)
                ended.append(job)
            elif self._tasks[id] in self._held:
                self._gone.pop(id, None)
            elif time.monotonic() - self._gone.setdefault(id, time.monotonic()) > GRACE_SECONDS:
                self._forget(job)
                if self._lost(job, state):
                    ended.append(job)
        return ended

    def close(self) -> None:
        """Nothing to wait for: Slurm goes on."""

    def _pause(self) -> None:
        until = time.monotonic() + self.poll
        while time.monotonic() < until and not self.stop.asked:
            time.sleep(min(0.2, self.poll))

    def _ask(self) -> None:
        """Ask Slurm which tasks it holds. Where it does not answer, all stays as it was."""
        try:
            self._held = held_tasks()
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
            self._gone.clear()

    def _lost(self, job: Job, state: State | None) -> bool:
        """Whether Slurm ended the task of a job that could have been done: killed, out of memory, never started.

        It is submitted again, but not for ever. One that was asked to stop, or waited for a job that was not done, is not
        counted.
        """
        needed = [self.folder.state(self.folder.by_id[id]) for id in job.needs]
        if any(need is None or need.state != "done" for need in needed):
            return False
        if state and state.state == "stopped":
            return True
        lost = self._losses.get(job.id, 0) + 1
        self._losses[job.id] = lost
        if lost >= MOST_LOST:
            state = state or State("failed", self.folder.fingerprints[job.id], list(job.command), "", 0, time.time())
            state.state = "failed"
            state.reason = f"Slurm ended it {lost} times without a word; its output is in {self.folder.path / 'slurm'}"
            self.folder.write(job, state)
        return True

    def _forget(self, job: Job) -> None:
        self._gone.pop(job.id, None)
        self._tasks.pop(job.id, None)
        self.folder.at(job, "slurm.json").unlink(missing_ok=True)

    def _submission(self, job: Job) -> dict:
        try:
            return json.loads(self.folder.at(job, "slurm.json").read_text())
        except FileNotFoundError:
            return {}


def array_script(folder: Path, jobs: dict[int, Job]) -> str:
    """The batch script of an array: one command a task, in place of the shell, so that Slurm's signals reach it."""
    program = Path(sys.executable).parent / "cromic-ds"
    ids = " ".join(f"[{index}]={job.id}" for index, job in jobs.items())
    table = f"--recipe {shlex.quote(str(folder / 'table.yaml'))} --out {shlex.quote(str(folder))}"
    return (
        "#!/bin/bash\n"
        f"jobs=({ids})\n"
        f'exec {shlex.quote(str(program))} table {table} --job "${{jobs[$SLURM_ARRAY_TASK_ID]}}"\n'
    )


def array_arguments(folder: Path, jobs: dict[int, Job], at_a_time: int, after: str) -> list[str]:
    """Of sbatch; those of the user come later and win.

    Requeued when a node fails or a job with more priority comes; two minutes before the time limit a training is asked to
    save and stop, and is submitted again.
    """
    stages = "-".join(sorted({job.stage for job in jobs.values()}))
    arguments = [
        f"--array={ranges(sorted(jobs))}" + (f"%{at_a_time}" if at_a_time else ""),
        f"--job-name=table-{stages}",
        f"--output={folder}/%A_%a.log",
        *("--open-mode=append", "--requeue", "--signal=B:USR1@120"),
    ]
    # aftercorr: a task waits for the task of the same index; one whose own failed is taken out of the queue.
    return arguments + ([f"--dependency=aftercorr:{after}", "--kill-on-invalid-dep=yes"] if after else [])


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] → 0-2,5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def held_tasks() -> dict[str, str]:
    """The tasks of this user's arrays that are waiting or running, with what they do (PENDING, RUNNING, …)."""
    lines = call(["squeue", "--me", "--array", "--noheader", "--format=%i %T"]).splitlines()
    return dict(line.split() for line in lines)


def call(command: list[str]) -> str:
    """What a Slurm command prints. Raises UserError where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"LC_ALL": "C"})
    except FileNotFoundError:
        raise UserError(f"--slurm: there is no {command[0]} on this machine; run it where jobs are submitted") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} did not answer within a minute") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"{command[0]}: {lines[-1]}; it was called as {shlex.join(command)}")
    return done.stdout
