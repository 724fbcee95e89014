"""The process group, created by DeepSpeed."""

import contextlib
import io
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from cromic_ds.engine.operations import COLLECTIVES, announce_compilation
from cromic_ds.ranks.collectives import barrier
from cromic_ds.ranks.launcher import Ranks, free_port, local_device, ranks_from
from cromic_ds.ranks.rendezvous import JOIN, check_devices, free_with_process, meet


def start() -> Ranks:
    """Join the process group through DeepSpeed (nccl on GPUs, gloo elsewhere), and choose this process's device.

    Variables that the launcher left out are set before DeepSpeed reads them. Raises UserError if this host has more processes
    than GPUs, the rendezvous port is in use, or not all ranks came.
    """
    ranks = ranks_from(os.environ)
    os.environ.update(
        RANK=str(ranks.rank),
        WORLD_SIZE=str(ranks.world_size),
        LOCAL_RANK=str(ranks.local_rank),
        LOCAL_WORLD_SIZE=str(ranks.local_world_size),
        MASTER_ADDR=ranks.master_addr,
        MASTER_PORT=str(ranks.master_port or free_port()),
    )
    import deepspeed

    if torch.cuda.is_available():
        check_devices(ranks, torch.cuda.device_count(), os.environ)
        torch.cuda.set_device(local_device())
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    meeting = meet(ranks, JOIN)
    if backend == "gloo":
        announce_compilation(COLLECTIVES)
    # Every rank prints that DeepSpeed's operation was built successfully.
    with contextlib.redirect_stdout(io.StringIO()):
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timedelta(minutes=30))
    barrier()
    del meeting
    free_with_process(ranks)
    return ranks


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
