"""Checks of what a run needs on this machine. Each says what was found, and what to do if that would stop a run."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from cromic_ds.errors import UserError
from cromic_ds.run_folder import RunFolder
from cromic_ds.shipped import PACKAGE, shipped

SHOWN = ("torch", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy", "lmdb", "wandb")
OPTIONAL = ("apex", "liger-kernel", "triton")
TOOLS = {
    "C++ compiler": [os.environ.get("CXX", "c++"), "--version"],  # the one torch compiles extensions with
    "ninja": ["ninja", "--version"],
    "nvcc": ["nvcc", "--version"],
    "ssh": ["ssh", "-V"],
    "pdsh": ["pdsh", "-V"],
    "java": ["java", "-version"],
}
USED_FOR = {
    "C++ compiler": "to compile, once",
    "ninja": "to compile, once",
    "nvcc": "ZeRO++, apex",
    "ssh": "--hostfile",
    "pdsh": "--hostfile",
    "java": "METEOR",
}
OPERATION = "deepspeed_shm_comm"  # the name of ShareMemCommBuilder in deepspeed.ops.op_builder.cpu
REDUCE_BUFFER = 66 * 2**20  # bytes of /dev/shm that DeepSpeed takes for each CPU rank
MEGA, GIGA = 1e6, 1e9
IN_CHECKOUT = " (`make setup`)" if (PACKAGE.parent / "Makefile").is_file() else ""


@dataclass(frozen=True)
class Check:
    """One thing that was checked. `stops` and `warns` say in one line what is wrong and what to do; empty = nothing is."""

    section: str
    name: str
    found: str
    needed: str = ""
    stops: str = ""
    warns: str = ""


@dataclass
class HostReport:
    """What was found on one machine."""

    host: str
    checks: list[Check]
    device: str = ""  # "cuda" or "cpu"; empty if torch cannot be imported
    slots: int = 0  # GPUs, or CPU cores
    versions: dict[str, str] = field(default_factory=dict)  # must be the same on all hosts of a run


def look(data: str | None = None, out: str | None = None) -> HostReport:
    """Run all checks. Raises nothing and writes nothing."""
    report = HostReport(socket.gethostname(), [])
    with ThreadPoolExecutor() as pool:  # the programs answer while torch is imported
        tools = {name: pool.submit(program_version, command) for name, command in TOOLS.items()}
        slurm = pool.submit(check_slurm)
        report.checks += [*check_packages(report), *check_shipped_files()]
        report.checks += check_torch(report)
        found = {name: tool.result() for name, tool in tools.items()}
        report.checks += [Check("tools", name, found[name] or "not found", USED_FOR[name]) for name in TOOLS]
        report.checks.append(check_launcher())
        if report.device == "cpu":
            report.checks.append(check_operation(found))
        report.checks += [slurm.result(), check_wandb(), *check_space(report, out)]
    if data:
        report.checks.append(check_data(data))
    if out:
        report.checks.append(check_out(Path(out)))
    return report


def run_program(command: list[str], seconds: float = 8) -> tuple[int, str]:
    """Return exit code and output (both streams) of a program; -1 and the reason if it cannot be run or does not end."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds)
    except OSError as error:
        return -1, error.strerror or ""
    except subprocess.TimeoutExpired:
        return -1, f"no answer in {seconds:.0f} s"
    return done.returncode, (done.stdout + done.stderr).strip()


def program_version(command: list[str]) -> str:
    """Return the version that a program prints; empty if it does not run."""
    code, output = run_program(command) if shutil.which(command[0]) else (-1, "")
    number = re.search(r"\d+\.\d+[\w.]*", output)
    return number[0] if code == 0 and number else ""


# ---- Python packages, and the files of this one


def check_packages(report: HostReport) -> Iterator[Check]:
    yield Check("Python", "python", sys.version.split()[0])
    report.versions["Python"] = sys.version.split()[0]
    try:
        required = [Requirement(line) for line in metadata.requires("cromic-ds") or ()]
    except metadata.PackageNotFoundError:
        problem = f"cromic-ds is not installed{IN_CHECKOUT}: install it, so that its requirements can be checked"
        yield Check("Python", "cromic-ds", f"{PACKAGE}, not installed", stops=problem)
        return
    yield Check("Python", "cromic-ds", f"{metadata.version('cromic-ds')}, {PACKAGE}")
    for need in required:
        if need.marker and not need.marker.evaluate({"extra": ""}):  # for developers
            continue
        version = installed_version(need.name)
        if version is None:
            problem = f"the package {need.name} is missing: install {need.name}{need.specifier}{IN_CHECKOUT}"
        elif not need.specifier.contains(version, prereleases=True):
            problem = f"{need.name} {version} is installed and {need.specifier} is needed: install that{IN_CHECKOUT}"
        else:
            problem = ""
        if problem or need.name in SHOWN:
            yield Check("Python", need.name, version or "missing", str(need.specifier), stops=problem)
        if need.name in SHOWN and version:
            report.versions[need.name] = version
    for name in OPTIONAL:
        yield Check("Python", name, installed_version(name) or "not installed", "optional")


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_shipped_files() -> Iterator[Check]:
    """The DeepSpeed configs and recipes that commands find by name; a wheel can be built without them."""
    for name, pattern in (("ds_configs", "*.json"), ("recipes", "*.yaml")):
        folder = shipped(name)
        count = len(list(folder.glob(pattern)))
        problem = (
            f"there are no {name} in {folder}: the installation is incomplete, install cromic-ds again{IN_CHECKOUT}"
        )
        yield Check("Python", name, f"{count} in {folder}", stops="" if count else problem)


def check_launcher() -> Check:
    beside, on_path = Path(sys.executable).parent / "deepspeed", shutil.which("deepspeed")
    if on_path:
        return Check("tools", "deepspeed", on_path, "several hosts")
    found = f"{beside}, not on the PATH" if beside.exists() else "not found"
    problem = "the program deepspeed, which starts runs on several hosts, is not on the PATH: activate the environment"
    return Check("tools", "deepspeed", found, "several hosts", warns=problem)


# ---- what torch and DeepSpeed can do here


def check_torch(report: HostReport) -> Iterator[Check]:
    for name in ("torch", "transformers", "deepspeed", "cromic_ds.training.run"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken installation can raise anything
            why = " ".join(str(error).split())[:300]
            yield Check(
                "Python", name, "cannot be imported", stops=f"{name} cannot be imported: {type(error).__name__}: {why}"
            )
            return
    import torch

    from cromic_ds.engine.adam import choose_kernel
    from cromic_ds.models.common.kernels import select
    from cromic_ds.models.common.precision import choose_precision
    from cromic_ds.ranks.preflight import code_fingerprint

    report.versions["code of cromic_ds"] = code_fingerprint()
    report.device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(report.device)
    cores = len(os.sched_getaffinity(0))
    yield Check("devices", "CPU cores", str(cores))
    if report.device == "cuda":
        report.slots = torch.cuda.device_count()
        for i in range(report.slots):
            about = torch.cuda.get_device_properties(i)
            yield Check("devices", f"GPU {i}", f"{about.name}, {about.total_memory / GIGA:.0f} GB")
        yield Check("devices", "CUDA of torch", str(torch.version.cuda))
    else:
        report.slots = cores
        unused = Path("/proc/driver/nvidia/version").exists()
        warning = f"there is an NVIDIA driver, but torch {torch.__version__} cannot use it: a run would use the CPU"
        yield Check("devices", "GPUs", "none that torch can use", warns=warning if unused else "")
    kernels = {**select(device).names, "optimizer": choose_kernel("auto", device)}
    yield Check("kernels", "precision", choose_precision("auto", device))
    for what, name in kernels.items():
        yield Check("kernels", what.replace("_", " "), name)


def check_operation(tools: dict[str, str]) -> Check:
    """DeepSpeed's operation for CPU ranks, which the first start compiles into torch's folder of extensions."""
    from torch.utils.cpp_extension import get_default_build_root

    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    # Without the variable torch adds a folder for the Python and CUDA versions.
    folders = [Path(given)] if given else [*Path(get_default_build_root()).glob("py*"), Path(get_default_build_root())]
    built = next((f / OPERATION for f in folders if (f / OPERATION / f"{OPERATION}.so").exists()), None)

    def result(found: str, stops: str = "") -> Check:
        return Check("DeepSpeed", "its CPU operation", found, "compiled once", stops=stops)

    for lock in (f / OPERATION / "lock" for f in folders):
        if lock.exists() and (age := time.time() - lock.stat().st_mtime) > 600:
            old = f"{lock} is {age / 60:.0f} minutes old"
            return result("locked", f"{old}, from a killed compilation, and every start waits for it: remove it")
    if built:
        return result(f"compiled, in {built}")
    lacking = [tool for tool in ("C++ compiler", "ninja") if not tools[tool]]
    problem = ""
    if lacking:
        problem = (
            f"DeepSpeed's CPU operation is not compiled yet, which needs {' and '.join(lacking)}: install g++ and ninja"
        )
    elif not writable(folders[-1]):
        problem = f"DeepSpeed's CPU operation cannot be written to {folders[-1]}: set TORCH_EXTENSIONS_DIR to a folder of yours"
    return result("not compiled yet: takes about a minute at the first start", problem)


# ---- services


def check_slurm() -> Check:
    if not shutil.which("sinfo"):
        return Check("services", "Slurm", "not installed", "sbatch, srun")
    code, output = run_program(["sinfo", "--noheader", "--format", "%P %D × %T"], seconds=5)
    last = output.splitlines()[-1] if output else "no partitions"
    if code != 0:
        return Check("services", "Slurm", f"sinfo fails: {last}", "sbatch, srun")
    return Check("services", "Slurm", ", ".join(output.splitlines()[:6]) or last)


def check_wandb() -> Check:
    try:
        from cromic_ds.tracking.wandb import resolve_mode

        mode = resolve_mode("auto")
    except Exception as error:  # a run continues without W&B in any case
        return Check("services", "W&B", "cannot be used", warns=f"W&B cannot be used: {error}")
    modes = {"online": "online (a login was found)", "offline": "offline (`wandb login` for online)"}
    return Check("services", "W&B", modes.get(mode, mode))


# ---- memory and disk


def check_space(report: HostReport, out: str | None) -> Iterator[Check]:
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
    more = "give it more (docker: --shm-size 8g)"
    stops = warns = ""
    if ranks and free < REDUCE_BUFFER:
        stops = f"/dev/shm has {free / MEGA:.0f} MB free, and DeepSpeed takes {REDUCE_BUFFER / MEGA:.0f} for a CPU rank: {more}"
    elif free < GIGA:
        warns = (
            f"/dev/shm has {free / MEGA:.0f} MB free, and the workers that read the data pass them through it: {more}"
        )
    yield Check("space", "/dev/shm", f"{free / GIGA:.1f} GB free", stops=stops, warns=warns)


def existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def writable(folder: Path) -> bool:
    there = existing(folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


# ---- the store and the run folder


def check_data(data: str) -> Check:
    def about() -> str:
        from cromic_ds.data.open_dataset import available_splits, open_dataset

        counts = {split: len(open_dataset(data, split)) for split in available_splits(data)}
        return ", ".join(f"{split} {n:,} posts" for split, n in counts.items())

    return found_or_why("data", data, about)


def check_out(out: Path) -> Check:
    if not writable(out):
        where = existing(out)
        problem = f"--out {out}: {where} is {'not writable' if where.is_dir() else 'no folder'}: name another one"
        return Check("run folder", str(out), "cannot be written", stops=problem)
    if not out.exists():
        return Check("run folder", str(out), "does not exist yet")

    def about() -> str:
        folder = RunFolder(out)
        if not any(out.iterdir()):
            return "empty"
        if not folder.config.exists():
            raise UserError(
                f"--out {out} is not empty and contains no run (no {folder.config.name}): name another folder"
            )
        steps = folder.step_names()
        if not steps:
            return "a run without a checkpoint: the same command starts it from the beginning"
        newest = folder.checkpoints / steps[-1]
        size, free = sum(p.stat().st_size for p in newest.rglob("*") if p.is_file()), shutil.disk_usage(out).free
        if size > free:
            raise UserError(
                f"--out {out}: a checkpoint takes {size / GIGA:.1f} GB and {free / GIGA:.1f} GB are free: make room"
            )
        return f"a run that resumes from {newest.name}; `cromic-ds status {out}` says more"

    return found_or_why("run folder", str(out), about)


def found_or_why(section: str, name: str, about: Callable[[], str]) -> Check:
    try:
        return Check(section, name, about())
    except UserError as error:
        return Check(section, name, "cannot be used", stops=str(error))
    except Exception as error:  # for example because torch is broken
        problem = f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"
        return Check(section, name, "not checked", warns=problem)
