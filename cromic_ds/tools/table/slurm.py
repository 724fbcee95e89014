"""Jobs in Slurm: the jobs that are ready are submitted as an array, each task of which runs `cromic-ds table … --job ID`.

An evaluation is submitted together with the fine-tuning that it waits for, so that the queue advances without this process.
Whether a job is done is read from the table's folder; Slurm is only asked which tasks it still holds.
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from cromic_ds.errors import UserError
from cromic_ds.files import read_json_if_there, write_atomically, write_json
from cromic_ds.ranks.launcher import number_ranges
from cromic_ds.tools.table.folder import JobState, TableFolder, in_state
from cromic_ds.tools.table.jobs import Stop
from cromic_ds.tools.table.plan import TableJob

POLL_SECONDS = 15.0
GRACE_SECONDS = 90.0
"""Seconds between a task leaving the queue and its job counting as lost: shared file systems show new files late."""
MOST_LOST = 3
"""How often Slurm may end a job without an error of its own before the job counts as failed."""
LARGEST_ARRAY = 1000  # Slurm's default MaxArraySize is 1001


class Slurm:
    """Submits job arrays and watches them."""

    def __init__(self, folder: TableFolder, arguments: str, slots: int | None, stop: Stop):
        """arguments: options of sbatch for every array; slots: how many tasks of an array may run together, None = all."""
        self.folder, self.arguments, self.slots, self.stop = folder, shlex.split(arguments), slots, stop
        self._tasks: dict[str, str] = {}  # job id → task id in Slurm (123_4)
        self._held: dict[str, str] = {}  # task id → state in Slurm
        self._gone: dict[str, float] = {}  # job id → when its task was first missing from the queue
        self._losses: dict[str, int] = {}  # job id → how often its task ended before the job was done
        files = {job.id: read_json_if_there(folder.job_file(job, "slurm.json")) for job in folder.jobs}
        if submitted := {id: content["task"] for id, content in files.items() if content}:
            self._held = held_tasks()
            self._tasks = {id: task for id, task in submitted.items() if task in self._held}

    @property
    def running(self) -> list[str]:
        return [] if self.stop.asked else [id for id, task in self._tasks.items() if self._held.get(task) == "RUNNING"]

    @property
    def queued(self) -> list[str]:
        """Ids of the jobs that wait, and of those that left the queue with an outcome that is not known yet."""
        return [] if self.stop.asked else [id for id, task in self._tasks.items() if self._held.get(task) != "RUNNING"]

    def start(self, ready: list[TableJob]) -> None:
        """Submit these jobs, and the jobs that wait for only one of them.

        Raises UserError if Slurm refuses and holds no job of the table. If it holds any, the refusal is printed as a warning
        and the jobs are submitted again later.
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

    def _following(self, jobs: dict[int, TableJob]) -> dict[int, TableJob]:
        """Return, for each task of an array, the job that becomes ready with it, if there is exactly one."""
        states = self.folder.states()
        following = {}
        for index, job in jobs.items():
            done = {job.id, *in_state(states, "done")}
            waiting = [j for j in self.folder.jobs if job.id in j.needs and done.issuperset(j.needs)]
            if len(waiting) == 1 and waiting[0].id not in self._tasks and not states[waiting[0].id]:
                following[index] = waiting[0]
        return following

    def _submit(self, jobs: dict[int, TableJob], after: str = "") -> str:
        """Submit an array whose tasks run the jobs of the same index; return its id."""
        folder = self.folder.path / "slurm"
        folder.mkdir(exist_ok=True)
        script = folder / f"array-{len(list(folder.glob('array-*.sh'))) + 1:04d}.sh"
        write_atomically(script, array_script(self.folder.path, jobs))
        command = ["sbatch", "--parsable", *array_arguments(folder, jobs, self.slots, after), *self.arguments]
        array = run_slurm([*command, str(script)]).strip().split(";")[0]  # id;cluster
        for index, job in jobs.items():
            task = f"{array}_{index}"
            submission = self.folder.job_file(job, "slurm.json")
            submission.parent.mkdir(parents=True, exist_ok=True)
            write_json(submission, {"task": task})
            self._tasks[job.id], self._held[task] = task, "PENDING"
        return array

    def wait(self) -> list[TableJob]:
        """Return the jobs that have ended since the last call, after POLL_SECONDS."""
        until = time.monotonic() + POLL_SECONDS
        while time.monotonic() < until and not self.stop.asked:
            time.sleep(0.2)
        try:
            self._held = held_tasks()
        except UserError as error:  # its last answer is kept
            print(f"warning: {error}", file=sys.stderr)
            self._gone.clear()
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
        """Do nothing: Slurm keeps running the jobs."""

    def _lost(self, job: TableJob, state: JobState | None) -> bool:
        """Return whether Slurm ended the task of a job that could have run: killed, out of memory, or never started.

        Such a job is submitted again, at most MOST_LOST times in all. A job that was asked to stop, or whose needs were not
        done, is not counted.
        """
        if self.folder.unmet(job):
            return False
        if state and state.state == "stopped":
            return True
        lost = self._losses[job.id] = self._losses.get(job.id, 0) + 1
        if lost >= MOST_LOST:
            state = state or JobState("failed", self.folder.fingerprints[job.id], list(job.command), "", 0, time.time())
            state.state = "failed"
            output = self.folder.path / "slurm"
            state.reason = f"Slurm ended it {lost} times without an error of the job; its output is in {output}"
            self.folder.write(job, state)
        return True

    def _forget(self, job: TableJob) -> None:
        self._gone.pop(job.id, None)
        self._tasks.pop(job.id, None)
        self.folder.job_file(job, "slurm.json").unlink(missing_ok=True)


def array_script(folder: Path, jobs: dict[int, TableJob]) -> str:
    """Return the batch script of an array. Each task's command replaces the shell, so that Slurm's signals reach it."""
    program = shlex.join([sys.executable, "-m", "cromic_ds"])
    ids = " ".join(f"[{index}]={job.id}" for index, job in jobs.items())
    table = f"--recipe {shlex.quote(str(folder / 'table.yaml'))} --out {shlex.quote(str(folder))}"
    return f'#!/bin/bash\njobs=({ids})\nexec {program} table {table} --job "${{jobs[$SLURM_ARRAY_TASK_ID]}}"\n'


def array_arguments(folder: Path, jobs: dict[int, TableJob], at_a_time: int | None, after: str) -> list[str]:
    """Return the options of sbatch for an array; the user's options come after them and override them.

    Slurm requeues a task whose node fails or that is preempted. Two minutes before the time limit a training is asked to save
    and stop; it is submitted again.
    """
    stages = "-".join(sorted({job.stage for job in jobs.values()}))
    limit = f"%{at_a_time}" if at_a_time else ""
    arguments = [f"--array={number_ranges(jobs)}{limit}", f"--job-name=table-{stages}", f"--output={folder}/%A_%a.log"]
    arguments += ["--open-mode=append", "--requeue", "--signal=B:USR1@120"]
    # aftercorr: a task waits for the task of the same index, and leaves the queue if that one fails.
    return arguments + ([f"--dependency=aftercorr:{after}", "--kill-on-invalid-dep=yes"] if after else [])


def held_tasks() -> dict[str, str]:
    """Return the waiting and running tasks of this user's arrays with their states in Slurm (PENDING, RUNNING, …)."""
    lines = run_slurm(["squeue", "--me", "--array", "--noheader", "--format=%i %T"]).splitlines()
    return dict(line.split() for line in lines)


def run_slurm(command: list[str]) -> str:
    """Return what a Slurm command prints. Raises UserError if it fails."""
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
