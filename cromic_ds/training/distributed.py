"""Processes and what they say to each other: ranks from any launcher, the process group, small collective helpers."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cromic_ds.errors import UserError

JOIN = timedelta(minutes=3)  # between the first rank's coming and the last one's


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


def start(environ: Mapping[str, str] = os.environ) -> Ranks:
    """Join the process group through DeepSpeed, and choose this process's device.

    nccl on GPUs, gloo elsewhere. Variables that a launcher left out are set before DeepSpeed reads them.

    Raises:
        UserError: more processes on this host than GPUs, the rendezvous port is taken, or not all ranks came.
    """
    ranks = ranks_from(environ)
    os.environ.update(
        RANK=str(ranks.rank),
        WORLD_SIZE=str(ranks.world_size),
        LOCAL_RANK=str(ranks.local_rank),
        LOCAL_WORLD_SIZE=str(ranks.local_world_size),
        MASTER_ADDR=ranks.master_addr,
        MASTER_PORT=str(ranks.master_port or free_port()),
    )
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if torch.cuda.is_available():
        check_devices(ranks, torch.cuda.device_count(), os.environ)
        torch.cuda.set_device(device())
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    meeting = meet(ranks, JOIN)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timedelta(minutes=30))
    barrier()
    del meeting
    free_with_process(ranks)
    return ranks


def meet(ranks: Ranks, within: timedelta) -> dist.Store | None:
    """Return once every rank has come to rank 0's address; keep what is returned until the process group is there, which uses
    the same server. By itself that would wait for an absent rank as long as for any collective, and not say for which.

    Raises:
        UserError: ranks that do not come, a rank 0 that cannot be reached, or a port that is taken.
    """
    if not ranks.master_port or "TORCHELASTIC_RUN_ID" in os.environ:  # a single process; torchrun's launchers have met
        return None
    address, port, world_size = ranks.master_addr, ranks.master_port, ranks.world_size
    host, everyone = socket.gethostname(), [str(rank) for rank in range(world_size)]
    try:
        store = dist.TCPStore(
            address, port, is_master=ranks.is_main, timeout=within, wait_for_workers=False, multi_tenant=True
        )
        store.set(str(ranks.rank), host)
    except dist.DistError as error:
        if "EADDRINUSE" in str(error):
            where = f"port {port} of {address}"
            raise UserError(f"{where} is in use: choose another (deepspeed --master_port, or MASTER_PORT)") from None
        raise UserError(
            f"rank {ranks.rank} on host {host} cannot reach rank 0 at {address}:{port}: has it started, is this its host's "
            "address for the others, and do the hosts let each other's connections in?"
        ) from None
    try:
        store.wait(everyone, within)
        return store
    except dist.DistError:
        pass
    try:
        absent = [rank for rank in everyone if not store.check([rank])]
    except dist.DistError:
        raise UserError(f"rank {ranks.rank} on host {host}: rank 0 at {address} ended before all had come") from None
    raise UserError(
        f"{world_size - len(absent)} of {world_size} ranks came to {address}:{port} within {within.total_seconds():.0f} s; "
        f"missing: {', '.join(absent[:16])}{', …' * (len(absent) > 16)}. Did their hosts start them, and can they connect to "
        "that port?"
    )


def check_devices(ranks: Ranks, count: int, environ: Mapping[str, str]) -> None:
    """Raises UserError where processes of this host would have to share its `count` GPUs. Under Slurm a task may be shown one
    GPU of its own (--gpus-per-task=1); then it cannot see those of the others."""
    if ranks.local_world_size > count and not (count == 1 and "SLURM_STEP_ID" in environ):
        raise UserError(
            f"host {socket.gethostname()} has {count} GPUs for {ranks.local_world_size} processes, and each drives one: start "
            f"{count} there (slots={count} in the hostfile, deepspeed --num_gpus, srun --ntasks-per-node)"
        )


def free_with_process(ranks: Ranks) -> None:
    """Take the name from the 66 MiB of shared memory that DeepSpeed reduces through on a CPU: every rank has it mapped by now,
    and without a name it is freed with the last of them, however they end. A killed run would leave it behind for good."""
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{ranks.master_addr}_{os.environ['MASTER_PORT']}_{ranks.rank}"
    Path("/dev/shm", name).unlink(missing_ok=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def device() -> torch.device:
    """This process's device. With one GPU shown to each process (srun --gpus-per-task=1) that is device 0."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Element-wise sum over all ranks, in double precision."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(values)
    tensor = torch.tensor(list(values), dtype=torch.float64, device=device())
    dist.all_reduce(tensor)
    return tensor.tolist()


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main(function: Callable, *args: Any) -> None:
    """Run `function` on rank 0 while the others wait; its UserError is raised on every rank."""
    message = None
    if int(os.environ.get("RANK", "0")) == 0:
        try:
            function(*args)
        except UserError as error:
            message = str(error)
    if message := from_main(message):
        raise UserError(message)


def barrier() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        sum_over_ranks([0.0])


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@torch.no_grad()
def average_buffers(model: torch.nn.Module) -> None:
    """Make every floating-point buffer (batch-norm statistics) the mean over the ranks, in place.

    DeepSpeed never synchronises buffers, so without this an evaluation or a checkpoint would depend on the rank.
    """
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    if not buffers or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    flat = torch.cat([b.flatten().double() for b in buffers])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers])):
        buffer.copy_(mean.view_as(buffer))
