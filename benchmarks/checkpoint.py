"""The cost of a checkpoint every 20 steps, saved in the background or while training waits: preset paper on the ten seed
posts, one process.

Blocks of 20 steps with the training loop's own calls take turns: without a checkpoint, with one saved in the background from
the start of the block, with one that training waits for. The cost is the time of a block relative to one without a checkpoint.
Writing takes processor time too: with `--threads` below the number of cores it has its own core, as on a machine whose GPUs
compute.

    python benchmarks/checkpoint.py [--seed_data FOLDER] [--folder DISK] [--rounds 5] [--threads 1] [--ds_config zero3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import SEED_DATA, exit_with, seed_batch
from loop_step import LoopRun, loop_run, loop_step

from cromic_ds.checkpoints.writer import CheckpointWriter
from cromic_ds.run_folder import RunFolder

EVERY, MOST_LOST = 20, 0.03
NONE, BACKGROUND, WAITING = "no checkpoint", "in the background", "waited for"


def seconds_of_block(run: LoopRun, checkpoints: CheckpointWriter | None) -> float:
    start = time.perf_counter()
    if checkpoints:
        run.checkpoints = checkpoints
        checkpoints.engine.deepspeed.checkpoint_engine = checkpoints.shards
        checkpoints.begin(run.learner.state)
    for _ in range(EVERY):
        loop_step(run)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed_data", default=str(SEED_DATA))
    parser.add_argument(
        "--folder", default=".", help="checkpoints are written below this folder and removed at the end"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ds_config", default="zero3")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=args.folder) as folder:
        run = loop_run(seed_batch(args.seed_data), args.ds_config, Path(folder))
        ways = {NONE: None, BACKGROUND: run.checkpoints}
        ways[WAITING] = CheckpointWriter(run.learner.engine, RunFolder(Path(folder)), keep_last=1, background=False)
        for checkpoints in ways.values():  # first use: allocates memory, compiles kernels
            seconds_of_block(run, checkpoints)
        lost: dict[str, list[float]] = {BACKGROUND: [], WAITING: []}
        for _ in range(args.rounds):
            seconds = {name: seconds_of_block(run, checkpoints) for name, checkpoints in ways.items()}
            for name, shares in lost.items():
                shares.append(seconds[name] / seconds[NONE] - 1)
            print("  ".join(f"{name} {value:.2f} s" for name, value in seconds.items()), flush=True)
        run.checkpoints.finish()
        n_bytes = sum(p.stat().st_size for p in Path(folder).rglob("step-*/*") if p.is_file())
    shares = {name: statistics.median(values) for name, values in lost.items()}
    print(
        f"checkpoint: a save of {n_bytes / 1e6:,.0f} MB every {EVERY} steps loses {shares[BACKGROUND]:.1%} of the time in the "
        f"background (limit {MOST_LOST:.0%}), {shares[WAITING]:.1%} if it is waited for; {args.threads} threads: "
        + ("pass" if shares[BACKGROUND] <= MOST_LOST else "FAIL")
    )
    return 0 if shares[BACKGROUND] <= MOST_LOST else 1


if __name__ == "__main__":
    exit_with(main)
