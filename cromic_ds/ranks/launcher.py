"""Who this process is among all processes of the run, from any launcher's environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cromic_ds.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """Who this process is among all processes of the run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1  # processes on this host
    master_addr: str = "127.0.0.1"
    master_port: int = 0  # 0: any free one (a single process)

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def ranks_from(environ: Mapping[str, str]) -> Ranks:
    """Ranks as torchrun and deepspeed (RANK, …) or Slurm's srun (SLURM_PROCID, …) put them into the environment.

    Raises:
        UserError: half of a launcher's variables.
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
    """As torchrun, deepspeed or Slurm say it (Slurm: `2(x3),1`, of which the first); else all processes on one host."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE", "WORLD_SIZE"):
        if match := re.match(r"\d+", environ.get(name, "")):
            return int(match[0])
    return 1


def first_host(nodelist: str) -> str:
    """`gpu[07-09,12],cpu1` -> `gpu07` (Slurm's compressed host list)."""
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", nodelist)
    return match[1] + (match[2] or "") if match else ""


def local_device() -> torch.device:
    """This process's device. With one GPU shown to each process (srun --gpus-per-task=1) that is device 0."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
