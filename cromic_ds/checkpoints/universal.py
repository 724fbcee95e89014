"""A checkpoint for another number of ranks or another ZeRO stage, through DeepSpeed's universal format: a file per tensor.

DeepSpeed cuts the old ranks' shards into one file per weight and Adam moment, and reads those into any number of ranks. What
its loader leaves out is done here: other stages than the one that wrote the checkpoint, stage 0 on either side, frozen
weights, the parameter groups' settings (at stage 3 it gives all groups the first one's) and the type of Adam's step.

The files lie beside the checkpoint while it is loaded, and belong to that one start: a later one begins anew.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from cromic_ds.engine.engine import Engine
from cromic_ds.engine.universal import (
    MOMENTS,
    ConversionFailed,
    Layout,
    convert,
    model_file,
    optimizer_file,
    read,
    restore_frozen,
)
from cromic_ds.errors import UserError
from cromic_ds.ranks.collectives import barrier, from_main

log = logging.getLogger(__name__)


DISK_BLOCK = 4096  # bytes that a small file or a folder takes at least


def load(engine: Engine, checkpoint: Path, written: Layout, progress: Callable[[], None] = lambda: None) -> None:
    """Restore weights and optimizer from a checkpoint of another layout, on all ranks together.

    Args:
        progress: called on every rank as the conversion goes on.

    Raises:
        UserError: too little disk, state on NVMe, or a conversion that failed; nothing is left of it then.
    """
    now = Layout(dist.get_world_size(), engine.stage)
    way_out = f"start the run with {written}"
    if engine.deepspeed.zero_nvme_offload_optimizer() or (checkpoint / "offloaded_tensors").exists():
        raise UserError(
            f"{checkpoint} was written by {written} and this run has {now}: with the optimizer on NVMe that cannot change; "
            f"{way_out}, or change the number of ranks with the optimizer elsewhere"
        )
    n_bytes = bytes_needed(checkpoint, written, len(list(engine.model.parameters())))
    check_disk(checkpoint, n_bytes, way_out)
    log.info("%s was written by %s, this run has %s: converting (%s)", checkpoint, written, now, megabytes(n_bytes))
    start = time.monotonic()
    folder = checkpoint.with_name(
        f".writing-universal-{checkpoint.name}"
    )  # the next save removes what a kill left of it
    try:
        remove(folder)
        try:
            convert(engine, checkpoint, written, folder, progress)
        except ConversionFailed as error:
            raise UserError(f"{checkpoint} could not be converted for {now} ({error}): {way_out}") from None
        read(engine, folder)
        restore_frozen(engine, checkpoint, written)
    finally:
        remove(folder)
    log.info("converted and loaded in %.1f s", time.monotonic() - start)


# ---- disk


def bytes_needed(checkpoint: Path, written: Layout, n_tensors: int) -> int:
    """Most bytes on disk while converting: every state once, cut up, and a file for each piece."""
    names = [optimizer_file(rank) for rank in range(written.world_size)] if written.stage else [model_file(0)]
    states = sum((checkpoint / name).stat().st_size for name in names)
    pieces = n_tensors * (len(MOMENTS) + 2) * (written.world_size + 1)
    return states + DISK_BLOCK * pieces


def check_disk(checkpoint: Path, n_bytes: int, way_out: str) -> None:
    """Raises UserError, on every rank, where the checkpoint's disk has too little space."""
    free = from_main(shutil.disk_usage(checkpoint).free)
    if free < n_bytes:
        raise UserError(
            f"converting {checkpoint} for another number of ranks or ZeRO stage takes {megabytes(n_bytes)} beside it for a "
            f"while, and {megabytes(free)} are free: free {megabytes(n_bytes - free)}, or {way_out}"
        )


def megabytes(n_bytes: int) -> str:
    return f"{-(-n_bytes // 10**6):,} MB"


def remove(folder: Path) -> None:
    """On all ranks together, when none reads it any more."""
    barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    barrier()


# ---- to the universal format


# ---- from the universal format
