"""The results table: pretrain every model, fine-tune it on every task and evaluate it, as a folder of jobs that can be
stopped and continued at any point, on this machine's GPUs, its CPU, or in Slurm.

The recipe says what is in the table; the finished part of it is always in OUT/results.md, results.json and results.png.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import yaml

from cromic_ds.errors import UserError
from cromic_ds.tools.table.check import check_commands
from cromic_ds.tools.table.folder import Folder, write_aside
from cromic_ds.tools.table.jobs import SCRIPTS, Stop, run_job
from cromic_ds.tools.table.local import Local, make_slots
from cromic_ds.tools.table.plan import Job, plan, recipe_of
from cromic_ds.tools.table.progress import Progress, count, failure
from cromic_ds.tools.table.report import write_report
from cromic_ds.tools.table.run import run_plan
from cromic_ds.tools.table.settings import PROJECT, TableSettings
from cromic_ds.tools.table.slurm import Slurm


def table(settings: TableSettings) -> None:
    """`cromic-ds table`: bring the table as far as it goes. Exits with 1 where something failed or is left.

    Raises:
        UserError: the recipe cannot work, or is not the one that the folder was made with.
    """
    settings.check()
    settings = settings.resolved()
    jobs = plan(settings)
    folder = Folder(Path(settings.out).resolve(), jobs, read_recipes(settings, jobs))
    folder.refuse_changed()
    if settings.show:
        show(folder)
        return
    stop = Stop().listen()
    if settings.job:
        sys.exit(run_one(folder, settings, stop))
    open_folder(folder, settings)
    if settings.retry:
        folder.retry()
    states = folder.states()
    check_commands(folder, [job for job in jobs if states[job.id] is None])
    if settings.slurm is None:
        executor = Local(folder, make_slots(settings), stop)
    else:
        executor = Slurm(folder, settings.slurm, settings.jobs, stop)
    try:
        with Progress(folder) as progress:
            run_plan(folder, executor, stop, progress, lambda: write_report(folder, settings))
    except OSError as error:
        raise UserError(
            f"{error.filename or folder.path}: {error.strerror}; the same command goes on from here"
        ) from None
    sys.exit(conclude(folder, settings, stop))


def read_recipes(settings: TableSettings, jobs: list[Job]) -> dict[str, str]:
    """The texts of the recipes that trainings start from, by their names in the table's folder.

    Raises:
        UserError: one is missing, or no YAML.
    """
    texts = {}
    for job in jobs:
        if job.stage in ("pretrain", "finetune"):
            name = recipe_of(settings, job.stage, job.model, job.task)
            path = Path(name) if Path(name).is_file() else PROJECT / "recipes" / f"{name}.yaml"
            inside = job.command[job.command.index("--config") + 1]
            if inside not in texts:
                try:
                    texts[inside] = path.read_text(encoding="utf-8")
                    yaml.safe_load(texts[inside])
                except FileNotFoundError:
                    raise UserError(f"{job.stage}_recipe: no file {name!r}, and no {path.name} in recipes/") from None
                except yaml.YAMLError as error:
                    raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    return texts


def open_folder(folder: Folder, settings: TableSettings) -> None:
    """Make the folder, and write what the table follows from into it: `cromic-ds table --recipe OUT/table.yaml` is it again."""
    for script in SCRIPTS:
        if not (PROJECT / script).is_file():
            raise UserError(f"{PROJECT / script} is missing: `cromic-ds table` starts the scripts of a checkout")
    try:
        for name, text in folder.recipes.items():
            write_aside(folder.path / name, text)
        write_aside(folder.path / "table.yaml", yaml.safe_dump(settings.recipe(), allow_unicode=True, sort_keys=False))
    except OSError as error:
        raise UserError(f"--out {folder.path}: cannot be written ({error.strerror})") from None


def run_one(folder: Folder, settings: TableSettings, stop: Stop) -> int:
    """`--job ID`: one job in the foreground; 0 when it is done."""
    job = folder.by_id.get(settings.job)
    if job is None:
        raise UserError(f"--job {settings.job}: this table has no such job; --show lists them")
    for id in job.needs:
        need = folder.state(folder.by_id[id])
        if need is None or need.state != "done":
            raise UserError(f"{job.id} needs {id}, which is not done")
    slot = make_slots(replace(settings, jobs=1))[0]
    state = run_job(folder, job, slot, stop, wait=True)
    print(f"{job.id}: {state.state}")
    if state.state == "failed":
        print(failure(folder, job, state))
    return 0 if state.state == "done" else 1


def show(folder: Folder) -> None:
    """`--show`: every job with its state and its command."""
    states = folder.states()
    skipped = folder.skipped(states)
    for job in folder.jobs:
        state = states[job.id]
        print(f"{state.state if state else 'skipped' if job.id in skipped else 'waiting':8} {job.id}")
        print(f"         {shlex.join(job.command)}")


def conclude(folder: Folder, settings: TableSettings, stop: Stop) -> int:
    """The table and what is missing in it, printed; the exit code."""
    write_report(folder, settings)
    states = folder.states()
    print((folder.path / "results.md").read_text(encoding="utf-8"))
    for job in folder.jobs:
        if (state := states[job.id]) and state.state == "failed":
            print(f"failed: {job.id}\n{failure(folder, job, state)}")
    skipped = folder.skipped(states)
    if skipped:
        print(f"skipped, for what they need has failed: {len(skipped)} jobs (--show lists them)")
    done, left = count(states, "done"), len(states) - count(states, "done")
    print(f"{done} of {len(states)} jobs done; {folder.path}/results.md, .json, .png")
    if stop.asked and left:
        print(
            "stopped; the same command goes on from here"
            + (", and Slurm goes on now" if settings.slurm is not None else "")
        )
    elif count(states, "failed"):
        print("--retry tries the failed ones again")
    return 1 if left else 0
