"""Start pretrain.py with DeepSpeed's launcher on everything this machine has: all GPUs, else two CPU processes.

Without --out the run folder is runs/NAME, or the next runs/NAME-2, -3, … after a finished one: an interrupted run is
continued, a finished one is never overwritten.
"""

import argparse
import os
import socket
import sys
from pathlib import Path

import torch


def run_folder(recipe: str) -> Path:
    """The first of runs/NAME, runs/NAME-2, … that holds no finished run."""
    base = Path("runs") / f"pretrain_{Path(recipe).stem}"
    folder, number = base, 1
    while (folder / "finished.json").exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


if __name__ == "__main__":
    arguments = sys.argv[1:]
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--config", default="recipe")
    options.add_argument("--out")
    known, _ = options.parse_known_args(arguments)
    if not known.out:
        arguments += ["--out", str(run_folder(known.config))]
    processes = torch.cuda.device_count()
    if not processes:
        processes = 2
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // processes)))
    launcher = ["deepspeed", "--num_gpus", str(processes), "--master_port", str(free_port()), "--log_level", "error"]
    os.execvp(launcher[0], [*launcher, "pretrain.py", *arguments])
