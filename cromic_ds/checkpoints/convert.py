"""Loading a checkpoint on another number of ranks or at another ZeRO stage.

It is converted to DeepSpeed's universal format (engine/universal.py) beside the checkpoint, loaded, and removed. A later
start of the run converts it again.
"""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from cromic_ds.engine.engine import Engine
from cromic_ds.engine.memory import megabytes
from cromic_ds.engine.universal import (
    MOMENTS,
    ConversionFailed,
    Layout,
    load_universal,
    model_file,
    optimizer_file,
    restore_frozen,
    write_universal,
)
from cromic_ds.errors import UserError
from cromic_ds.ranks.collectives import barrier, from_main
from cromic_ds.run_folder import RunFolder

log = logging.getLogger(__name__)
DISK_BLOCK = 4096  # bytes that a small file or a folder takes at least


def load_converted(
    engine: Engine, checkpoint: Path, written: Layout, progress: Callable[[], None] = lambda: None
) -> None:
    """Restore weights and optimizer from a checkpoint of another layout. Collective.

    Args:
        written: the layout of the checkpoint.
        progress: called on every rank during the conversion.

    Raises:
        UserError: too little disk, optimizer state on NVMe, or a conversion that failed. No files of it are left.
    """
    now = Layout(dist.get_world_size(), engine.stage)
    way_out = f"start the run with {written}"
    if engine.deepspeed.zero_nvme_offload_optimizer() or (checkpoint / "offloaded_tensors").exists():
        raise UserError(
            f"{checkpoint} was written by {written} and this run has {now}: with the optimizer on NVMe that cannot change; "
            f"{way_out}, or change the number of ranks with the optimizer elsewhere"
        )
    n_bytes = bytes_to_convert(checkpoint, written, len(list(engine.model.parameters())))
    check_space(checkpoint, n_bytes, way_out)
    log.info("%s was written by %s, this run has %s: converting (%s)", checkpoint, written, now, megabytes(n_bytes))
    start = time.monotonic()
    folder = RunFolder(checkpoint.parents[1]).temporary(f"universal-{checkpoint.name}")
    try:
        remove_together(folder)
        try:
            write_universal(engine, checkpoint, written, folder, progress)
        except ConversionFailed as error:
            raise UserError(f"{checkpoint} could not be converted for {now} ({error}): {way_out}") from None
        load_universal(engine, folder)
        restore_frozen(engine, checkpoint, written)
    finally:
        remove_together(folder)
    log.info("converted and loaded in %.1f s", time.monotonic() - start)


def bytes_to_convert(checkpoint: Path, written: Layout, n_tensors: int) -> int:
    """Upper bound on the bytes on disk during a conversion: every state once, and a file for each of its pieces."""
    names = [optimizer_file(rank) for rank in range(written.world_size)] if written.stage else [model_file(0)]
    states = sum((checkpoint / name).stat().st_size for name in names)
    pieces = n_tensors * (len(MOMENTS) + 2) * (written.world_size + 1)
    return states + DISK_BLOCK * pieces


def check_space(checkpoint: Path, n_bytes: int, way_out: str) -> None:
    """Raise UserError, on every rank, if the checkpoint's disk has too little space."""
    free = from_main(shutil.disk_usage(checkpoint).free)
    if free < n_bytes:
        raise UserError(
            f"converting {checkpoint} for another number of ranks or ZeRO stage takes {megabytes(n_bytes)} beside it for a "
            f"while, and {megabytes(free)} are free: free {megabytes(n_bytes - free)}, or {way_out}"
        )


def remove_together(folder: Path) -> None:
    """Remove a folder once no rank reads it any more. Collective."""
    barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    barrier()
