"""The run of the cluster tests: the smallest one that still has every part."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from helpers.launching import QUIET, last_step

RECIPE = "recipes/sample_cmt.yaml"
RUN = "runs/sample_cmt"  # where launch/pretrain.sh puts it


def arguments(store: Path, *more: object) -> list[str]:
    """Return the settings of a run of four steps, whose losses do not depend on how the eight posts of a step are split."""
    settings = {
        **{
            "data.path": store,
            "loop.steps": 4,
            "loop.global_batch": 8,
            "loop.micro_batch": 2,
            "checkpoint.every": "null",
        },
        # A small rate: Adam's first steps turn the last digits of near-zero gradients into whole steps of single weights.
        **{"model.batch_norm": "frozen", "optim.lr": 1e-5},
        **{"eval.every": "null", "eval.generate": 4, "eval.micro_batch": 4},
    }
    pairs = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return [*pairs, *QUIET, *map(str, more)]


def write_hostfile(checkout: Path, *lines: str) -> None:
    """Write a hostfile, and the variables that DeepSpeed's launcher does not pass on by itself."""
    (checkout / "hosts").write_text("\n".join(lines) + "\n")
    names = ("PATH", "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR", "DS_ACCELERATOR")
    variables = [f"{name}={shlex.quote(os.environ[name])}\n" for name in names]
    (checkout / ".deepspeed_env").write_text("".join(variables))


def wait_for_step(run: Path, step: int, what_else: Callable[[], str], timeout: float = 300) -> None:
    """Return once `metrics.jsonl` contains training step `step`. `what_else` returns the output to show if it does not."""
    end = time.monotonic() + timeout
    while last_step(run) < step:
        assert time.monotonic() < end, f"step {step} was not reached in {timeout} s\n{what_else()[-6000:]}"
        time.sleep(0.1)
