"""The results table as a folder of jobs that can be stopped and resumed at any point, on this machine's GPUs, its CPU, or in
Slurm. The recipe defines the table. Its finished part is always in OUT/results.md, results.json and results.png."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import yaml

from cromic_ds.errors import UserError
from cromic_ds.files import write_atomically
from cromic_ds.shipped import shipped
from cromic_ds.tools.table.folder import TableFolder, in_state
from cromic_ds.tools.table.jobs import Executor, Stop, run_job
from cromic_ds.tools.table.local import Local, make_slots
from cromic_ds.tools.table.plan import TableJob, plan_jobs, recipe_of
from cromic_ds.tools.table.progress import Progress, explain_failure
from cromic_ds.tools.table.report import write_table_report
from cromic_ds.tools.table.settings import TableSettings
from cromic_ds.tools.table.slurm import Slurm


def table(settings: TableSettings) -> None:
    """`cromic-ds table`: run all jobs that can run. Exits with 1 if a job failed or is left. Raises UserError if the recipe
    cannot work, or differs from the one that the folder was made with."""
    settings = settings.resolved()
    jobs = plan_jobs(settings)
    folder = TableFolder(Path(settings.out).resolve(), jobs, read_recipes(settings, jobs))
    folder.refuse_changed()
    if settings.show:
        list_jobs(folder)
        return
    stop = Stop().listen()
    if settings.job:
        sys.exit(run_one(folder, settings, stop))
    write_recipes(folder, settings)
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
            run_plan(folder, executor, stop, progress, lambda: write_table_report(folder, settings))
    except OSError as error:
        raise UserError(f"{error.filename or folder.path}: {error.strerror}; run the same command to resume") from None
    sys.exit(conclude(folder, settings, stop))


def read_recipes(settings: TableSettings, jobs: list[TableJob]) -> dict[str, str]:
    """Return the texts of the recipes that trainings start from, by their paths in the table's folder. Raises UserError if a
    recipe is missing, or is not YAML."""
    texts: dict[str, str] = {}
    for job in jobs:
        inside = job.command[job.command.index("--config") + 1] if job.trains else ""
        if not inside or inside in texts:
            continue
        name = recipe_of(settings, job.stage, job.model, job.task)
        path = Path(name) if Path(name).is_file() else shipped("recipes") / f"{name}.yaml"
        try:
            texts[inside] = path.read_text(encoding="utf-8")
            yaml.safe_load(texts[inside])
        except FileNotFoundError:
            raise UserError(f"{job.stage}_recipe: no file {name!r}, and no {path.name} in recipes/") from None
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    return texts


def write_recipes(folder: TableFolder, settings: TableSettings) -> None:
    """Make the folder and write the recipes into it, so that `cromic-ds table --recipe OUT/table.yaml` is the same table."""
    recipe = yaml.safe_dump(settings.recipe(), allow_unicode=True, sort_keys=False)
    try:
        (folder.path / "recipes").mkdir(parents=True, exist_ok=True)
        for name, text in {**folder.recipes, "table.yaml": recipe}.items():
            write_atomically(folder.path / name, text)
    except OSError as error:
        raise UserError(f"--out {folder.path}: cannot be written ({error.strerror})") from None


def check_commands(folder: TableFolder, jobs: list[TableJob]) -> None:
    """Raise UserError for the first job whose settings the command line would refuse. The folder must contain the recipes.

    The check runs in a separate process, because it imports everything that trains.
    """
    commands = commands_to_check(jobs)
    if not commands:
        return
    checking = [sys.executable, "-m", "cromic_ds.cli.check"]
    done = subprocess.run(checking, input=json.dumps(commands), cwd=folder.path, capture_output=True, text=True)
    if done.returncode:
        id = done.stdout.split()[-1:] or ["the settings could not be checked"]
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(f"{id[0]}: {said[0].removeprefix('error: ')}; `cromic-ds table … --show` prints its command")


def commands_to_check(jobs: list[TableJob]) -> dict[str, list[str]]:
    """Return the arguments of `cromic-ds` for one job of each kind, by its id; jobs of other seeds have the same settings."""
    kinds = {(job.stage, job.model, job.task, job.start): job for job in reversed(jobs)}
    return {job.id: list(job.command[1:]) for job in jobs if job.model and job in kinds.values()}


def run_plan(
    folder: TableFolder, executor: Executor, stop: Stop, progress: Progress, report: Callable[[], object]
) -> None:
    """Start jobs as soon as they are ready, until all are done, failed or skipped, or a stop is asked for. `report` is called
    at the start and whenever an evaluation is done."""
    report()
    announced = False
    try:
        while True:
            states = folder.states()
            busy = {*executor.running, *executor.queued}
            ready = [job for job in folder.ready(states) if job.id not in busy]
            if not stop.asked:
                executor.start(ready)
            elif executor.running and not announced:
                announced = True
                n = len(executor.running)
                print(f"stopping: {n} running, each saves its progress; press Ctrl-C again to kill them", flush=True)
            if not executor.running and not executor.queued and (stop.asked or not ready):
                break
            progress.update(states, executor)
            for job in executor.wait():
                state = folder.state(job)
                progress.ended(job, state, folder.states(), executor)
                if job.stage == "evaluate" and state and state.state == "done":
                    report()
    except BaseException:
        stop.asked = True  # or `close` would wait for jobs that run for hours
        raise
    finally:
        executor.close()


def run_one(folder: TableFolder, settings: TableSettings, stop: Stop) -> int:
    """`--job ID`: run one job in the foreground; return 0 when it is done, else 1."""
    job = folder.by_id.get(settings.job or "")
    if job is None:
        raise UserError(f"--job {settings.job}: this table has no such job; --show lists them")
    if missing := folder.unmet(job):
        raise UserError(f"{job.id} needs {missing[0]}, which is not done")
    slot = make_slots(replace(settings, jobs=1))[0]
    state = run_job(folder, job, slot, stop, wait=True)
    print(f"{job.id}: {state.state}")
    if state.state == "failed":
        print(explain_failure(folder, job, state))
    return 0 if state.state == "done" else 1


def list_jobs(folder: TableFolder) -> None:
    """`--show`: print each job with its state and its command."""
    states = folder.states()
    skipped = folder.skipped(states)
    for job in folder.jobs:
        state = states[job.id]
        name = state.state if state else "skipped" if job.id in skipped else "waiting"
        print(f"{name:8} {job.id}\n         {shlex.join(job.command)}")


def conclude(folder: TableFolder, settings: TableSettings, stop: Stop) -> int:
    """Print the table and what is missing in it; return the exit code."""
    write_table_report(folder, settings)
    states = folder.states()
    print((folder.path / "results.md").read_text(encoding="utf-8"))
    for job in folder.jobs:
        if (state := states[job.id]) and state.state == "failed":
            print(f"failed: {job.id}\n{explain_failure(folder, job, state)}")
    if skipped := folder.skipped(states):
        print(f"skipped, because a job that they need failed: {len(skipped)} jobs (--show lists them)")
    done = len(in_state(states, "done"))
    left = len(states) - done
    print(f"{done} of {len(states)} jobs done; {folder.path}/results.md, .json, .png")
    if stop.asked and left:
        slurm = "; Slurm keeps running the submitted jobs" if settings.slurm is not None else ""
        print(f"stopped; run the same command to resume{slurm}")
    elif in_state(states, "failed"):
        print("--retry runs the failed jobs again")
    return 1 if left else 0
