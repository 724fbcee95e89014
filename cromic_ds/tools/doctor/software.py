"""Checks of the software: Python packages, the files of this one, what torch and DeepSpeed can do, compilers."""

import importlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from cromic_ds.shipped import PACKAGE, shipped
from cromic_ds.tools.doctor.checks import GIGA, Check, HostReport, writable

SHOWN = ("torch", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy", "lmdb", "wandb")
OPTIONAL = ("apex", "liger-kernel", "triton")
OPERATION = "deepspeed_shm_comm"  # the name of ShareMemCommBuilder in deepspeed.ops.op_builder.cpu
IN_CHECKOUT = " (`make setup`)" if (PACKAGE.parent / "Makefile").is_file() else ""


def check_packages(report: HostReport) -> Iterator[Check]:
    report.versions["Python"] = sys.version.split()[0]
    yield Check("Python", "python", report.versions["Python"])
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
        version, problem = installed_version(need.name), ""
        if version is None:
            problem = f"the package {need.name} is missing: install {need.name}{need.specifier}{IN_CHECKOUT}"
        elif not need.specifier.contains(version, prereleases=True):
            problem = f"{need.name} {version} is installed and {need.specifier} is needed: install that{IN_CHECKOUT}"
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
        problem = f"there are no {name} in {folder}: the installation is incomplete"
        again = "" if count else f"{problem}, install cromic-ds again{IN_CHECKOUT}"
        yield Check("Python", name, f"{count} in {folder}", stops=again)


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
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            yield Check("Python", name, "cannot be imported", stops=f"{name} cannot be imported: {why}")
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
    kernels = {"precision": choose_precision("auto", device), **select(device).names}
    for what, name in (kernels | {"optimizer": choose_kernel("auto", device)}).items():
        yield Check("kernels", what.replace("_", " "), name)


def check_operation(tools: dict[str, str]) -> Check:
    """DeepSpeed's operation for CPU ranks, which the first start compiles into torch's folder of extensions."""
    from torch.utils.cpp_extension import get_default_build_root

    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    # Without the variable torch adds a folder for the Python and CUDA versions.
    roots = [Path(given)] if given else [*Path(get_default_build_root()).glob("py*"), Path(get_default_build_root())]
    folders = [root / OPERATION for root in roots]
    built = [folder for folder in folders if (folder / f"{OPERATION}.so").exists()]
    ages = {f / "lock": time.time() - (f / "lock").stat().st_mtime for f in folders if (f / "lock").exists()}
    old = [f"{lock} is {age / 60:.0f} minutes old" for lock, age in ages.items() if age > 600]
    lacking = " and ".join(tool for tool in ("C++ compiler", "ninja") if not tools[tool])
    found, stops = "not compiled yet: takes about a minute at the first start", ""
    if old:
        found = "locked"
        stops = f"{old[0]}, from a killed compilation, and every start waits for it: remove it"
    elif built:
        found = f"compiled, in {built[0]}"
    elif lacking:
        stops = f"DeepSpeed's CPU operation is not compiled yet, which needs {lacking}: install g++ and ninja"
    elif not writable(roots[-1]):
        stops = (
            f"DeepSpeed's CPU operation cannot be written to {roots[-1]}: set TORCH_EXTENSIONS_DIR to a folder of yours"
        )
    return Check("DeepSpeed", "its CPU operation", found, "compiled once", stops=stops)
