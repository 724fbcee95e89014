"""Quick stand-ins for jobs, and a runner for them in a process of its own that tests can kill: the scheduler is what is
tested with them. A job's product is a file; each of its starts leaves a line in FOLDER/starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

from cromic_ds.errors import UserError
from cromic_ds.tools.table import jobs
from cromic_ds.tools.table.command import run_plan
from cromic_ds.tools.table.folder import TableFolder
from cromic_ds.tools.table.jobs import Slot, Stop
from cromic_ds.tools.table.local import Local
from cromic_ds.tools.table.plan import TableJob
from cromic_ds.tools.table.progress import Progress
from helpers.paths import HELPERS, REPOSITORY

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def job(id: str, script: str = "", needs: tuple[str, ...] = (), stage: str = "prepare", **about) -> TableJob:
    """A job whose shell `script` comes before its product is made."""
    command = ("bash", "-c", f"echo {id} >> starts; {script or ':'}; touch {id}.made")
    return TableJob(id, stage, command, f"{id}.made", needs, **about)


def check(job: TableJob, folder: Path) -> dict:
    if not (folder / job.makes).exists():
        raise UserError(f"{folder / job.makes} is missing")
    return {"records": 1}


def run(folder: TableFolder, slots: int = 1, stop: Stop | None = None) -> dict[str, str]:
    """Run the jobs to their end, in this process; the states by job."""
    stop = stop or Stop()
    executor = Local(folder, [Slot(ENVIRONMENT)] * slots, stop)
    with patch.object(jobs, "check_product", check), Progress(folder) as progress:
        run_plan(folder, executor, stop, progress, lambda: None)
    return states(folder)


def states(folder: TableFolder) -> dict[str, str]:
    return {id: state.state if state else "" for id, state in folder.states().items()}


def starts(folder: TableFolder) -> list[str]:
    path = folder.path / "starts"
    return path.read_text().split() if path.exists() else []


def runner(folder: TableFolder, slots: int = 1) -> subprocess.Popen:
    """The same in a process of its own."""
    described = json.dumps([vars(job) for job in folder.jobs])
    command = [sys.executable, __file__, str(folder.path), str(slots), described]
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{HELPERS.parent}"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


if __name__ == "__main__":
    path, n_slots, described = sys.argv[1:]
    all_jobs = [
        TableJob(**{k: tuple(v) if isinstance(v, list) else v for k, v in of.items()}) for of in json.loads(described)
    ]
    run(TableFolder(Path(path), all_jobs, {}), int(n_slots), Stop().listen())
