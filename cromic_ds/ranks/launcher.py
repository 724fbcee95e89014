"""Who this process is among all processes of the run, from any launcher's environment. Imports torch only for the device."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cromic_ds.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Ranks:
    """Who this process is among all processes of the run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1  # processes on this host
    master_addr: str = "127.0.0.1"
    master_port: int = 0  # 0: any free port (a single process)

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def ranks_from(environ: Mapping[str, str]) -> Ranks:
    """Read the ranks that torchrun and deepspeed (RANK, …) or Slurm's srun (SLURM_PROCID, …) put into the environment.

    Raises:
        UserError: the launcher set only some of its variables.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        names, default_port = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), "29500"
    elif "SLURM_STEP_NUM_TASKS" in environ:  # set by srun only; a batch script on its own is one process
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        default_port = str(20000 + int(environ.get("SLURM_JOB_ID", "0")) % 20000)
    else:
        return Ranks()
    missing = [name for name in names[:2] if name not in environ]
    if missing:
        raise UserError(f"the launcher set {', '.join(n for n in names if n in environ)} but not {', '.join(missing)}")
    return Ranks(
        rank=int(environ[names[0]]),
        world_size=int(environ[names[1]]),
        local_rank=int(environ.get(names[2], "0")),
        local_world_size=processes_per_host(environ),
        master_addr=environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", "")) or "127.0.0.1",
        master_port=int(environ.get("MASTER_PORT") or default_port),
    )


def processes_per_host(environ: Mapping[str, str]) -> int:
    """Return how many processes a host has, from torchrun, deepspeed or Slurm; without any of them, all run on one host.

    Slurm lists the hosts (`2(x3),1`); the first one's number is taken.
    """
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE", "WORLD_SIZE"):
        if match := re.match(r"\d+", environ.get(name, "")):
            return int(match[0])
    return 1


def first_host(nodelist: str) -> str:
    """Return the first host of Slurm's compressed list: `gpu07` of `gpu[07-09,12],cpu1`."""
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", nodelist)
    return match[1] + (match[2] or "") if match else ""


def local_device() -> torch.device:
    """Return this process's device. Where each process is shown one GPU only (srun --gpus-per-task=1), that is device 0."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def free_port() -> int:
    """Return a port of this host that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def name_ranks(ranks: Iterable[int]) -> str:
    """Return ranks as text: "rank 7", "ranks 0-2, 5"."""
    text = number_ranges(ranks, ", ")
    return f"rank{'s' * (not text.isdecimal())} {text}"


def number_ranges(numbers: Iterable[int], separator: str = ",") -> str:
    """Return numbers as Slurm takes them: "0-2,5"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return separator.join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
