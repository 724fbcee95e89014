"""How far the table is: a bar on a terminal, a line for each job that ended, and the time left."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from cromic_ds.tools.display import STATE_COLORS, duration
from cromic_ds.tools.table.folder import JobState, JobStates, TableFolder, in_state
from cromic_ds.tools.table.jobs import Executor, last_lines
from cromic_ds.tools.table.plan import TableJob


class Progress:
    """Prints what happens."""

    def __init__(self, folder: TableFolder):
        self.folder, self.console = folder, Console(soft_wrap=True)
        self._bar: Bar | None = None
        if self.console.is_terminal:
            columns = (TextColumn("jobs"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"))
            self._bar = Bar(*columns, console=self.console)
            self._task = self._bar.add_task("jobs", total=len(folder.jobs), status="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, states: JobStates, executor: Executor) -> None:
        """Show on a terminal what is running now."""
        if self._bar:
            names = ", ".join([*executor.running[:4], *(["…"] if len(executor.running) > 4 else [])])
            status = escape(f"{names}  {self._summary(states, executor)}")
            self._bar.update(self._task, completed=len(in_state(states, "done")), status=status)

    def ended(self, job: TableJob, state: JobState | None, states: JobStates, executor: Executor) -> None:
        """Print a line for a job that ended, and for a failed one the last lines of its log."""
        outcome = state.state if state else "lost"
        head = escape(f"[{len(in_state(states, 'done'))}/{len(states)}] {job.id}")
        took = f" after {duration(state.seconds)}" if state else ""
        line = f"{head} [{STATE_COLORS.get(outcome, 'yellow')}]{outcome}[/]{took}"
        self.console.print(f"{line}  ({escape(self._summary(states, executor))})", highlight=False)
        if state and state.state == "failed":
            self.console.print(explain_failure(self.folder, job, state), markup=False, highlight=False)

    def _summary(self, states: JobStates, executor: Executor) -> str:
        parts = [f"{len(executor.running)} running"]
        if executor.queued:
            parts.append(f"{len(executor.queued)} queued")
        if failed := in_state(states, "failed"):
            parts.append(f"{len(failed)} failed")
        slots = executor.slots or len(executor.running)
        return ", ".join([*parts, time_left(self.folder, states, executor.running, slots)])


def explain_failure(folder: TableFolder, job: TableJob, state: JobState) -> str:
    """Return why a job failed, with the path and the last lines of its log."""
    log = folder.job_file(job, "log.txt")
    if not log.exists():
        return f"    {state.reason}"
    return "\n".join([f"    {state.reason}; its log {log} ends with", *(f"    | {line}" for line in last_lines(log))])


def time_left(folder: TableFolder, states: JobStates, running: Sequence[str], slots: int) -> str:
    """Return the estimated time left as text; a lower bound until each kind of job has finished once."""
    seconds, unknown = estimate(folder, states, running, slots)
    if not seconds and unknown:
        return "time left unknown"
    return f"{'at least ' if unknown else ''}{duration(seconds)} left"


def estimate(folder: TableFolder, states: JobStates, running: Sequence[str], slots: int) -> tuple[float, int]:
    """Return the seconds that the remaining jobs take on `slots` at a time, and how many of them cannot be estimated.

    A job is assumed to take the mean time of the finished jobs that are most like it: those of the same model, task and start;
    else of the same model and task; else of the same model; else of the same stage.
    """
    took: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for job in folder.jobs:
        if (state := states[job.id]) and state.state == "done":
            for kind in _kinds(job):
                took[kind].append(state.seconds)
    work, unknown = 0.0, 0
    ended = {*in_state(states, "done"), *in_state(states, "failed"), *folder.skipped(states)}
    for job in folder.jobs:
        if job.id in ended:
            continue
        known = next((took[kind] for kind in _kinds(job) if kind in took), None)
        if known is None:
            unknown += 1
            continue
        state = states[job.id]
        spent = state.seconds if state else 0.0
        if state and job.id in running and state.state == "started":
            spent += max(0.0, time.time() - state.started)
        work += max(0.0, statistics.mean(known) - spent)
    return work / max(1, slots), unknown


def _kinds(job: TableJob) -> list[tuple[str, ...]]:
    """Return the kinds of job that this one belongs to, the narrowest first."""
    about = (job.stage, job.model, job.task, job.start)
    return [about[:n] for n in (4, 3, 2, 1)]
