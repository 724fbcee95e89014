"""A table's folder. It holds the state of each job in files that any number of processes can read and only one writes.

jobs/<id>/state.json   started, stopped, failed or done; "done" is written only after the job's product was checked
jobs/<id>/lock         locked by the process that runs the job and by the job itself, so that the lock survives a killed runner
jobs/<id>/log.txt      everything that the job printed
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import yaml

from cromic_ds.errors import UserError
from cromic_ds.files import digest, exclusive, read_json, write_json
from cromic_ds.prepare.store_writer import partial_folder
from cromic_ds.tools.table.plan import TableJob


@dataclass
class JobState:
    """What state.json says about a job."""

    state: Literal["started", "stopped", "failed", "done"]
    fingerprint: str  # hash of the command, its recipe and the jobs before it; see `TableFolder.fingerprints`
    command: list[str]
    host: str
    pid: int
    started: float  # seconds since the epoch
    seconds: float = 0.0  # run time so far, without interruptions
    reason: str = ""  # why it failed
    result: dict[str, Any] = field(default_factory=dict)  # summary of its product; see `jobs.check_product`


JobStates = dict[str, JobState | None]


def in_state(states: JobStates, wanted: str) -> set[str]:
    """Return the ids of the jobs in a state."""
    return {id for id, state in states.items() if state and state.state == wanted}


class Busy(Exception):
    """Another process runs the job."""


class TableFolder:
    """The jobs of a table and their states."""

    def __init__(self, path: Path, jobs: list[TableJob], recipes: dict[str, str]):
        """recipes: text of each recipe that the jobs' commands name, by its path in the folder (recipes/x.yaml)."""
        self.path, self.jobs, self.recipes = path, jobs, recipes
        self.by_id = {job.id: job for job in jobs}
        contents = {name: yaml.safe_load(text) for name, text in recipes.items()}
        self.fingerprints: dict[str, str] = {}
        for job in jobs:
            needed = [self.fingerprints[id] for id in job.needs]
            about = [job.command, [contents[part] for part in job.command if part in contents], needed]
            self.fingerprints[job.id] = digest(json.dumps(about, default=str, sort_keys=True), size=16)

    def job_file(self, job: TableJob, name: str) -> Path:
        return self.path / "jobs" / job.id / name

    def state(self, job: TableJob) -> JobState | None:
        """Return None for a job that was never started with its present settings, or whose product was removed."""
        state = self._written(job)
        if state is None or state.fingerprint != self.fingerprints[job.id]:
            return None
        return state if state.state != "done" or (self.path / job.makes).exists() else None

    def _written(self, job: TableJob) -> JobState | None:
        path = self.job_file(job, "state.json")
        try:
            return JobState(**read_json(path))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error}); remove it to start the job again") from None

    def write(self, job: TableJob, state: JobState) -> None:
        path = self.job_file(job, "state.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(state), indent=1)

    @contextmanager
    def lock(self, job: TableJob, wait: bool = False) -> Iterator[int]:
        """Lock the job and yield the file descriptor of the lock, which the job's own process inherits. Raises Busy if another
        process has locked it and `wait` is not set."""
        path = self.job_file(job, "lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                file = stack.enter_context(exclusive(path, wait))
            except BlockingIOError:
                raise Busy(job.id) from None
            yield file.fileno()

    def ready(self, states: JobStates) -> list[TableJob]:
        """Return the jobs that can be started or resumed, because all jobs that they need are done."""
        done = in_state(states, "done")
        ended = done | in_state(states, "failed")
        return [job for job in self.jobs if job.id not in ended and done.issuperset(job.needs)]

    def unmet(self, job: TableJob) -> list[str]:
        """Return the jobs that this one needs and that are not done."""
        needed = {id: self.state(self.by_id[id]) for id in job.needs}
        return [id for id in needed if id not in in_state(needed, "done")]

    def skipped(self, states: JobStates) -> dict[str, str]:
        """Return the jobs that can never start, each with the failed job that it waits for."""
        because: dict[str, str] = {}
        failed = in_state(states, "failed")
        for job in self.jobs:
            if causes := [because.get(need, need) for need in job.needs if need in because or need in failed]:
                because[job.id] = causes[-1]
        return because

    def states(self) -> JobStates:
        return {job.id: self.state(job) for job in self.jobs}

    def refuse_changed(self) -> None:
        """Raise UserError where a product, finished or not, was made with other settings than the present ones. A job whose
        product was removed is simply run again."""
        for job in self.jobs:
            state, product = self._written(job), self.path / job.makes
            remains = (product.parent if job.trains else product, partial_folder(product))
            left = [path for path in remains if path.exists()]
            if state and state.fingerprint != self.fingerprints[job.id] and left:
                raise UserError(
                    f"{job.id} was {'made' if state.state == 'done' else 'begun'} with other settings "
                    f"({_difference(state.command, job)}): restore the recipe, choose another --out, or remove "
                    f"{' and '.join(map(str, left))} (and the same for each job that needs it) to run it again"
                )

    def retry(self) -> None:
        """Mark the failed jobs as stopped, so that they are resumed."""
        for job in self.jobs:
            if (state := self.state(job)) and state.state == "failed":
                self.write(job, replace(state, state="stopped", reason=""))


def _difference(before: list[str], job: TableJob) -> str:
    """Describe the first setting in which two commands differ."""
    for old, new in zip_longest(_settings(before), _settings(job.command)):
        if old != new:
            return f"was {old or 'nothing'}, is {new or 'nothing'}"
    return f"the recipe it names has changed, or {' or '.join(job.needs) or 'what it needs'}"


def _settings(command: Sequence[str]) -> list[str]:
    """Split a command into pieces, in which `--name value` is one."""
    pieces: list[str] = []
    for text in command:
        if pieces and pieces[-1].startswith("--") and " " not in pieces[-1] and not text.startswith("--"):
            pieces[-1] += f" {shlex.quote(text)}"
        else:
            pieces.append(text)
    return pieces
