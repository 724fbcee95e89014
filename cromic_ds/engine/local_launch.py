"""Several processes of a training on this machine, started by DeepSpeed's launcher, without its log lines."""

import base64
import contextlib
import io
import json
import logging
import os
import sys

import torch

from cromic_ds.errors import UserError
from cromic_ds.ranks.launcher import free_port

CPU_PROCESSES = 2  # of `all` on a machine without a GPU


def launch(gpus: str, command: list[str]) -> int:
    """Run `python -m COMMAND…` in one process for each GPU, and return the exit code of the first one that fails, or 0.

    DeepSpeed's launcher runs in this process with its own lines kept back; they are printed only if a process fails without
    having explained why. The processes write to this process's output themselves, so they see the terminal. `gpus` is their
    number, or `all`: on a machine without a GPU, that is two processes on the CPU. Raises UserError for devices that are
    not there, and where a launcher has already started this process.
    """
    if "RANK" in os.environ:
        raise UserError(
            "--gpus starts the processes of this machine itself: leave it out when a launcher starts cromic-ds"
        )
    devices = choose_devices(gpus, torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not torch.cuda.is_available():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(devices))))
    world = base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()
    options = [f"--world_info={world}", f"--master_port={free_port()}", "--no_local_rank", "--module"]
    sys.argv = ["deepspeed", *options, *command]
    code: int | str | None = 0
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines):
        from deepspeed.launcher import launch as launcher
        from deepspeed.utils import logger

        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(lines)
        try:
            launcher.main()
        except SystemExit as end:
            code = end.code
    # On a UserError (2) the processes have said what is wrong. On a stop by a signal the launcher logs no error.
    if code not in (0, None, 2) and "[ERROR]" in lines.getvalue():
        print(lines.getvalue(), end="", file=sys.stderr)
    return int(code or 0)


def choose_devices(gpus: str, available: int, visible: str | None) -> list[int] | list[str]:
    """Return the devices that DeepSpeed's launcher shows to the processes, of those that are `available` to torch.

    They are entries of CUDA_VISIBLE_DEVICES (`visible`) if that is set; the launcher would otherwise replace them by 0, 1, ….
    """
    if gpus != "all" and not (gpus.isdecimal() and int(gpus)):
        raise UserError(f"--gpus {gpus}: give a number of GPUs, or all")
    if gpus == "all" and not available:
        return list(range(CPU_PROCESSES))
    count = available if gpus == "all" else int(gpus)
    if count > available:
        hint = "" if available else "; --gpus all starts two processes on the CPU"
        raise UserError(
            f"--gpus {gpus}: torch can use {available or 'no'} GPU{'s' * (available != 1)} on this machine{hint}"
        )
    if visible:
        return [name.strip() for name in visible.split(",")][:count]
    return list(range(count))
