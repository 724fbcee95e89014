"""All checks of what a run needs on this machine. Each says what was found, and what to do if that would stop a run."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cromic_ds.errors import UserError
from cromic_ds.run_folder import RunFolder
from cromic_ds.tools.doctor import software
from cromic_ds.tools.doctor.checks import GIGA, Check, HostReport, existing, program_version, run_program, writable

PROGRAMS = {  # name: how to ask for the version, what it is needed for
    "C++ compiler": ([os.environ.get("CXX", "c++"), "--version"], "to compile, once"),  # the one that torch uses
    "ninja": (["ninja", "--version"], "to compile, once"),
    "nvcc": (["nvcc", "--version"], "ZeRO++, apex"),
    "ssh": (["ssh", "-V"], "--hostfile"),
    "pdsh": (["pdsh", "-V"], "--hostfile"),
    "java": (["java", "-version"], "METEOR"),
}
MEGA = 1e6
REDUCE_BUFFER = 66 * 2**20  # bytes of /dev/shm that DeepSpeed takes for each CPU rank


def look(data: str | None, out: str | None) -> HostReport:
    """Run all checks. Raises nothing and writes nothing."""
    report = HostReport(socket.gethostname(), [])
    with ThreadPoolExecutor() as pool:  # the programs answer while torch is imported
        programs = {name: pool.submit(program_version, command) for name, (command, _) in PROGRAMS.items()}
        slurm = pool.submit(check_slurm)
        report.checks += [*software.check_packages(report), *software.check_shipped_files()]
        report.checks += software.check_torch(report)
        found = {name: program.result() for name, program in programs.items()}
        for name, (_, needed) in PROGRAMS.items():
            report.checks.append(Check("tools", name, found[name] or "not found", needed))
        report.checks.append(software.check_launcher())
        if report.device == "cpu":
            report.checks.append(software.check_operation(found))
        report.checks += [slurm.result(), check_wandb(), *check_memory_and_disk(report, out)]
    if data:
        report.checks.append(found_or_why("data", data, lambda: about_data(data)))
    if out:
        report.checks.append(check_out(Path(out)))
    return report


# ---- services


def check_slurm() -> Check:
    if not shutil.which("sinfo"):
        return Check("services", "Slurm", "not installed", "sbatch, srun")
    code, output = run_program(["sinfo", "--noheader", "--format", "%P %D × %T"], seconds=5)
    lines = output.splitlines() or ["no partitions"]
    if code != 0:
        return Check("services", "Slurm", f"sinfo fails: {lines[-1]}", "sbatch, srun")
    return Check("services", "Slurm", ", ".join(lines[:6]))


def check_wandb() -> Check:
    try:
        from cromic_ds.tracking.wandb import resolve_mode

        mode = resolve_mode("auto")
    except Exception as error:  # a run continues without W&B in any case
        return Check("services", "W&B", "cannot be used", warns=f"W&B cannot be used: {error}")
    modes = {"online": "online (a login was found)", "offline": "offline (`wandb login` for online)"}
    return Check("services", "W&B", modes.get(mode, mode))


# ---- memory and disk


def check_memory_and_disk(report: HostReport, out: str | None) -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory()
    yield Check("space", "memory", f"{memory.available / GIGA:.1f} of {memory.total / GIGA:.1f} GB free")
    where = existing(Path(out or "."))
    free = shutil.disk_usage(where).free
    tight = f"only {free / GIGA:.1f} GB are free in {where}: a checkpoint of the paper's model takes 1.9 GB"
    yield Check("space", f"disk of {where}", f"{free / GIGA:.1f} GB free", warns=tight if free < 8 * GIGA else "")
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return
    free, ranks = shutil.disk_usage(shm).free, report.slots if report.device == "cpu" else 0
    has, more = f"/dev/shm has {free / MEGA:.0f} MB free, and", "give it more (docker: --shm-size 8g)"
    stops = warns = ""
    if ranks and free < REDUCE_BUFFER:
        stops = f"{has} DeepSpeed takes {REDUCE_BUFFER / MEGA:.0f} for a CPU rank: {more}"
    elif free < GIGA:
        warns = f"{has} the workers that read the data pass them through it: {more}"
    yield Check("space", "/dev/shm", f"{free / GIGA:.1f} GB free", stops=stops, warns=warns)


# ---- the store and the run folder


def about_data(data: str) -> str:
    from cromic_ds.data.open_dataset import available_splits, open_dataset

    return ", ".join(f"{split} {len(open_dataset(data, split)):,} posts" for split in available_splits(data))


def check_out(out: Path) -> Check:
    if not writable(out):
        where = existing(out)
        problem = f"--out {out}: {where} is {'not writable' if where.is_dir() else 'no folder'}: name another one"
        return Check("run folder", str(out), "cannot be written", stops=problem)
    return found_or_why("run folder", str(out), lambda: about_run(out))


def about_run(out: Path) -> str:
    """Return what is in a run folder. Raises UserError where a run cannot start or resume in it."""
    folder = RunFolder(out)
    if not out.exists():
        return "does not exist yet"
    if not any(out.iterdir()):
        return "empty"
    if not folder.config.exists():
        raise UserError(f"--out {out} is not empty and contains no run (no {folder.config.name}): name another folder")
    steps = folder.step_names()
    if not steps:
        return "a run without a checkpoint: the same command starts it from the beginning"
    newest = folder.checkpoints / steps[-1]
    size, free = sum(p.stat().st_size for p in newest.rglob("*") if p.is_file()), shutil.disk_usage(out).free
    if size > free:
        sizes = f"a checkpoint takes {size / GIGA:.1f} GB and {free / GIGA:.1f} GB are free"
        raise UserError(f"--out {out}: {sizes}: make room")
    return f"a run that resumes from {newest.name}; `cromic-ds status {out}` says more"


def found_or_why(section: str, name: str, about: Callable[[], str]) -> Check:
    try:
        return Check(section, name, about())
    except UserError as error:
        return Check(section, name, "cannot be used", stops=str(error))
    except Exception as error:  # for example because torch is broken
        problem = f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"
        return Check(section, name, "not checked", warns=problem)
