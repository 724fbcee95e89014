"""How far the table is: a bar on a terminal, a line for each finished job everywhere, and the time left."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from cromic_ds.tools.table.executor import Executor
from cromic_ds.tools.table.folder import Folder, State
from cromic_ds.tools.table.jobs import last_lines
from cromic_ds.tools.table.plan import Job

States = dict[str, State | None]
COLORS = {"done": "green", "failed": "red", "stopped": "yellow"}


class Progress:
    """Prints what happens."""

    def __init__(self, folder: Folder, console: Console | None = None):
        self.folder, self.console = folder, console or Console(soft_wrap=True)
        self._bar: Bar | None = None
        if self.console.is_terminal:
            columns = (TextColumn("jobs"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"))
            self._bar = Bar(*columns, console=self.console)
            self._task = self._bar.add_task("jobs", total=len(folder.jobs), status="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, states: States, executor: Executor) -> None:
        """What is running now; on a terminal only."""
        if self._bar:
            names = ", ".join([*executor.running[:4], *(["…"] if len(executor.running) > 4 else [])])
            status = escape(f"{names}  {self._summary(states, executor)}")
            self._bar.update(self._task, completed=count(states, "done"), status=status)

    def ended(self, job: Job, state: State | None, states: States, executor: Executor) -> None:
        """A line for a job that came to its end, and for a failed one the last lines of its log."""
        what = state.state if state else "lost"
        head = f"[{count(states, 'done')}/{len(states)}]"
        took = f" after {duration(state.seconds)}" if state else ""
        line = f"{escape(head)} {escape(job.id)} [{COLORS.get(what, 'yellow')}]{what}[/]{took}"
        self.console.print(f"{line}  ({escape(self._summary(states, executor))})", highlight=False)
        if state and state.state == "failed":
            self.console.print(failure(self.folder, job, state), markup=False, highlight=False)

    def _summary(self, states: States, executor: Executor) -> str:
        parts = [f"{len(executor.running)} running"]
        if executor.queued:
            parts.append(f"{len(executor.queued)} queued")
        if failed := count(states, "failed"):
            parts.append(f"{failed} failed")
        slots = executor.slots or len(executor.running)
        return ", ".join([*parts, time_left(self.folder, states, executor.running, slots)])


def count(states: States, what: str) -> int:
    return sum(state is not None and state.state == what for state in states.values())


def failure(folder: Folder, job: Job, state: State) -> str:
    """Why a job failed, where its log is, and how that ends."""
    log = folder.at(job, "log.txt")
    lines = [f"    {state.reason}; its log {log} ends with"] if log.exists() else [f"    {state.reason}"]
    return "\n".join([*lines, *(f"    | {line}" for line in (last_lines(log) if log.exists() else []))])


def time_left(folder: Folder, states: States, running: list[str], slots: int) -> str:
    """In words; from the jobs that are done, and from below while some kind of job never was."""
    seconds, unknown = estimate(folder, states, running, slots)
    if not seconds and unknown:
        return "time left unknown"
    return f"{'at least ' if unknown else ''}{duration(seconds)} left"


def estimate(
    folder: Folder, states: States, running: list[str], slots: int, now: float | None = None
) -> tuple[float, int]:
    """Seconds that the jobs not yet done take on `slots` at a time, and how many of them nothing is known of.

    A job takes as long as the mean of those done that are most like it: the same model, task and start; then the same
    model and task; the same model; the same stage.
    """
    now = time.time() if now is None else now
    took: dict[tuple, list[float]] = defaultdict(list)
    for job in folder.jobs:
        state = states[job.id]
        if state and state.state == "done":
            for kind in _kinds(job):
                took[kind].append(state.seconds)
    work, unknown, skipped = 0.0, 0, folder.skipped(states)
    for job in folder.jobs:
        state = states[job.id]
        if job.id in skipped or (state and state.state in ("done", "failed")):
            continue
        known = next((took[kind] for kind in _kinds(job) if kind in took), None)
        if known is None:
            unknown += 1
            continue
        spent = state.seconds if state else 0.0
        if state and job.id in running and state.state == "started":
            spent += max(0.0, now - state.started)
        work += max(0.0, statistics.mean(known) - spent)
    return work / max(1, slots), unknown


def _kinds(job: Job) -> list[tuple]:
    """From the most alike to the least."""
    about = (job.stage, job.model, job.task, job.start)
    return [about[:n] for n in (4, 3, 2, 1)]


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
