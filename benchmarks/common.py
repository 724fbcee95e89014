"""What `train_step.py` and `decode.py` share: the ten seed posts as a batch, timing side by side, peak memory."""

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
    """End the process with what `main` returns; a UserError is one line and exit code 2."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def seed_batch(folder: str | Path, most_comments: int | None = None) -> Batch:
    """All posts of a data set in the published layout, with their images and their first comments (None = all).

    Raises:
        UserError: the folder is not there.
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
    """Seconds of each candidate in each round, and what each returned when it ran once before the clock started. They
    take turns, so that a busy machine slows all of them alike."""
    results = {name: run() for name, run in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def report(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Print each candidate's median and spread; the medians."""
    for name, values in seconds.items():
        print(
            f"{name:>24}: {statistics.median(values):7.3f} s (from {min(values):.3f} to {max(values):.3f})", flush=True
        )
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """How many times faster `fast` is: the median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast]))


def peak_mb() -> float:
    """Most memory that this process has held, in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
