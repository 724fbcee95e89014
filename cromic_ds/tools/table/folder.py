"""A table's folder: the state of each job, kept in files that any number of runners can read and only one writes.

jobs/<id>/state.json   started, stopped, failed or done; done only after the result was looked at
jobs/<id>/lock         held by the runner and by the job itself, so that it outlives a runner that was killed
jobs/<id>/log.txt      all that the job printed
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import yaml

from cromic_ds.errors import UserError
from cromic_ds.prepare.store_writer import partial_folder
from cromic_ds.tools.table.plan import Job


@dataclass
class State:
    """What became of a job."""

    state: Literal["started", "stopped", "failed", "done"]
    fingerprint: str  # of the command, its recipe and all that came before; see `Folder.fingerprints`
    command: list[str]
    host: str
    pid: int
    started: float  # seconds since the epoch
    seconds: float = 0.0  # spent on it so far, interruptions left out
    reason: str = ""  # why it failed
    result: dict[str, Any] = field(default_factory=dict)  # of what it made; see products.py


class Busy(Exception):
    """Another process holds the job."""


class Folder:
    """The jobs of a table and their states."""

    def __init__(self, path: Path, jobs: list[Job], recipes: dict[str, str]):
        """recipes: name in the folder (recipes/x.yaml) to text, for all that the jobs' commands name."""
        self.path, self.jobs, self.recipes = path, jobs, recipes
        self.by_id = {job.id: job for job in jobs}
        self.fingerprints = self._fingerprints()

    def _fingerprints(self) -> dict[str, str]:
        """Of each job's command, the content of its recipe and the fingerprints of what it needs."""
        contents = {name: yaml.safe_load(text) for name, text in self.recipes.items()}
        made: dict[str, str] = {}
        for job in self.jobs:
            about = [job.command, [contents[a] for a in job.command if a in contents], [made[n] for n in job.needs]]
            digest = hashlib.blake2b(json.dumps(about, default=str, sort_keys=True).encode(), digest_size=16)
            made[job.id] = digest.hexdigest()
        return made

    def at(self, job: Job, name: str) -> Path:
        return self.path / "jobs" / job.id / name

    def state(self, job: Job) -> State | None:
        """None for a job that was never started as it is now, or whose product was removed."""
        state = self._written(job)
        if state is None or state.fingerprint != self.fingerprints[job.id]:
            return None
        return state if state.state != "done" or (self.path / job.makes).exists() else None

    def _written(self, job: Job) -> State | None:
        path = self.at(job, "state.json")
        try:
            return State(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error}); remove it, and the job is started again") from None

    def write(self, job: Job, state: State) -> None:
        write_aside(self.at(job, "state.json"), json.dumps(asdict(state), ensure_ascii=False, indent=1) + "\n")

    @contextmanager
    def lock(self, job: Job, wait: bool = False) -> Iterator[int]:
        """Hold the job; gives the descriptor of the lock, for the job's own process to inherit.

        Raises Busy where another process holds it, unless `wait`.
        """
        path = self.at(job, "lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise Busy(job.id) from None
            yield descriptor
        finally:
            os.close(descriptor)

    def ready(self, states: dict[str, State | None]) -> list[Job]:
        """Jobs that can be started, or gone on with: all that they need is done."""
        done = {id for id, state in states.items() if state and state.state == "done"}
        over = done | {id for id, state in states.items() if state and state.state == "failed"}
        return [job for job in self.jobs if job.id not in over and done.issuperset(job.needs)]

    def skipped(self, states: dict[str, State | None]) -> dict[str, str]:
        """Jobs that can never start, with the failed one that they wait for."""
        because: dict[str, str] = {}
        for job in self.jobs:
            for need in job.needs:
                state = states[need]
                if need in because or (state and state.state == "failed"):
                    because[job.id] = because.get(need, need)
        return because

    def states(self) -> dict[str, State | None]:
        return {job.id: self.state(job) for job in self.jobs}

    def refuse_changed(self) -> None:
        """Raise UserError where something was made with other settings than those of now.

        A job whose product was removed is simply made anew.
        """
        for job in self.jobs:
            state, left = self._written(job), [path for path in self._remains(job) if path.exists()]
            if state and state.fingerprint != self.fingerprints[job.id] and left:
                raise UserError(
                    f"{job.id} was {'made' if state.state == 'done' else 'begun'} with other settings "
                    f"({_difference(state.command, job)}): put the recipe back, choose another --out, or remove "
                    f"{' and '.join(map(str, left))} (and so for each job that needs it) to make it anew"
                )

    def _remains(self, job: Job) -> list[Path]:
        """Where a job leaves what it makes, finished or not."""
        product = self.path / job.makes
        return [product.parent if job.trains else product, partial_folder(product)]

    def retry(self) -> None:
        """Let the failed jobs be tried again, from where they stopped."""
        for job in self.jobs:
            state = self.state(job)
            if state and state.state == "failed":
                self.write(job, replace(state, state="stopped", reason=""))


def _difference(before: list[str], job: Job) -> str:
    """The first thing in which two commands differ, in words."""
    for old, new in zip_longest(_settings(before), _settings(job.command)):
        if old != new:
            return f"was {old or 'nothing'}, is {new or 'nothing'}"
    return f"the recipe it names has changed, or {' or '.join(job.needs) or 'what it needs'}"


def _settings(command) -> list[str]:
    """A command in pieces: `--name value` is one."""
    pieces: list[str] = []
    for text in command:
        if pieces and pieces[-1].startswith("--") and " " not in pieces[-1] and not text.startswith("--"):
            pieces[-1] += f" {shlex.quote(text)}"
        else:
            pieces.append(text)
    return pieces


def write_aside(path: Path, text: str) -> None:
    """Written beside, then moved into place: a reader sees the old text or the new one, whoever else writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
