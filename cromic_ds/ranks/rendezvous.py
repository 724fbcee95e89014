"""Ranks meet at rank 0's address before the process group is made."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from cromic_ds.errors import UserError
from cromic_ds.ranks.launcher import Ranks

JOIN = timedelta(minutes=3)  # between the first rank's coming and the last one's


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
