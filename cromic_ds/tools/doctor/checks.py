"""One check of the doctor, the report of a host, and what several checks need. Standard library only."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

GIGA = 1e9


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


def existing(path: Path) -> Path:
    """Return the absolute path, or its nearest parent that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def writable(folder: Path) -> bool:
    there = existing(folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
