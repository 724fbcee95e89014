"""Shared by the benchmarks: the ten seed posts as a batch, timing side by side, peak memory."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from cromic_ds.batch import Batch
from cromic_ds.data.loader import DataSettings, eval_batches
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.errors import UserError

SEED_DATA = Path(__file__).resolve().parents[2] / "shared" / "seed_data"


def exit_with(main: Callable[[], int]) -> NoReturn:
    """End the process with the exit code that `main` returns; a UserError is printed in one line, with exit code 2."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def seed_batch(folder: str | Path, most_comments: int | None = None) -> Batch:
    """Return all posts of a data set in the published layout as one batch, with their images and first comments (None = all).

    Raises:
        UserError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise UserError(f"--seed_data {folder}: no such folder; give a data folder in the published layout")
    dataset = open_dataset(folder, "train")
    settings = DataSettings(workers=0, eval_comments_per_post=most_comments)
    whole = eval_batches(dataset, settings, image_size=224, micro_batch=len(dataset), rank=0, world_size=1)
    return next(whole)


def side_by_side(
    candidates: dict[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, object]]:
    """Return the seconds of each candidate in each round, and what each returned in a first run that is not timed.

    The candidates take turns, so that a busy machine slows all of them equally.
    """
    results = {name: run() for name, run in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def report(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Print each candidate's median and range; return the medians."""
    for name, values in seconds.items():
        print(
            f"{name:>24}: {statistics.median(values):7.3f} s (from {min(values):.3f} to {max(values):.3f})", flush=True
        )
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Return how many times faster `fast` is: the median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast]))


def peak_mb() -> float:
    """Return the peak memory of this process in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
