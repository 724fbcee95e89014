"""All ranks connect to rank 0 before the process group is created, so that absent ranks can be named."""

import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from cromic_ds.errors import UserError
from cromic_ds.ranks.launcher import Ranks, name_ranks

JOIN = timedelta(minutes=3)  # between the arrival of the first rank and of the last one


def meet(ranks: Ranks, within: timedelta) -> TCPStore | None:
    """Return once every rank has connected to rank 0's address.

    The process group alone would wait for an absent rank as long as for any collective, and not name it. It uses the same
    server, so keep the returned store until the group exists.

    Raises:
        UserError: not all ranks came, rank 0 cannot be reached, or the port is in use.
    """
    if not ranks.master_port or "TORCHELASTIC_RUN_ID" in os.environ:  # a single process, or torchrun has done the same
        return None
    address, port, world_size = ranks.master_addr, ranks.master_port, ranks.world_size
    host = socket.gethostname()
    try:
        store = TCPStore(
            address, port, is_master=ranks.is_main, timeout=within, wait_for_workers=False, multi_tenant=True
        )
        store.set(str(ranks.rank), host)
    except DistError as error:
        if "EADDRINUSE" in str(error):
            where = f"port {port} of {address}"
            raise UserError(f"{where} is in use: choose another (deepspeed --master_port, or MASTER_PORT)") from None
        raise UserError(
            f"rank {ranks.rank} on host {host} cannot reach rank 0 at {address}:{port}: has it started, is this its host's "
            "address for the others, and do the hosts let each other's connections in?"
        ) from None
    try:
        store.wait([str(rank) for rank in range(world_size)], within)
        return store
    except DistError:
        pass
    try:
        absent = [rank for rank in range(world_size) if not store.check([str(rank)])]
    except DistError:
        raise UserError(
            f"rank {ranks.rank} on host {host}: rank 0 at {address} ended before all ranks had come"
        ) from None
    raise UserError(
        f"{world_size - len(absent)} of {world_size} ranks came to {address}:{port} within {within.total_seconds():.0f} s; "
        f"missing: {name_ranks(absent)}. Did their hosts start them, and can they connect to that port?"
    )


def check_devices(ranks: Ranks, count: int, environ: Mapping[str, str]) -> None:
    """Raise UserError if processes of this host would have to share its `count` GPUs.

    Under Slurm a task may be shown only its own GPU (--gpus-per-task=1).
    """
    if ranks.local_world_size > count and not (count == 1 and "SLURM_STEP_ID" in environ):
        raise UserError(
            f"host {socket.gethostname()} has {count} GPUs for {ranks.local_world_size} processes, and each drives one: start "
            f"{count} there (slots={count} in the hostfile, deepspeed --num_gpus, srun --ntasks-per-node)"
        )


def free_with_process(ranks: Ranks) -> None:
    """Unlink the 66 MiB of shared memory through which DeepSpeed reduces on a CPU.

    Every rank has mapped it by now. Without a name it is freed with the last rank, however the ranks end; a killed run would
    otherwise leave it behind.
    """
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{ranks.master_addr}_{os.environ['MASTER_PORT']}_{ranks.rank}"
    Path("/dev/shm", name).unlink(missing_ok=True)
