"""Time and memory until a run has its first batch, with 10⁹ examples against 10³.

Each measurement runs in its own process; the two sizes alternate, and medians are compared. The examples are those of
`data/store`, repeated, so that only the number of examples differs.

    python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMALL, LARGE = 10**3, 10**9
MOST_SECONDS, MOST_MB = 0.2, 20.0


class Repeated:
    """A data set of `size` examples, which repeats those of another one."""

    def __init__(self, dataset, size: int):
        self.dataset, self.size = dataset, size
        self.split, self.fingerprint, self.tokenizer_path = dataset.split, dataset.fingerprint, dataset.tokenizer_path

    def __len__(self) -> int:
        return self.size

    def tokens(self, index: int):
        return self.dataset.tokens(index % len(self.dataset))

    def image(self, index: int):
        return self.dataset.image(index % len(self.dataset))


def peak_mb() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(size: int) -> dict[str, float]:
    """Return the seconds from a ready data set to the first batch of 64, and the peak memory of the process in MB."""
    from cromic_ds.batch import BatchSplit
    from cromic_ds.data.loader import DataSettings, special_tokens, training_batches
    from cromic_ds.data.open_dataset import open_dataset

    dataset = Repeated(open_dataset(ROOT / "data" / "store", "train"), size)
    special_tokens(dataset.tokenizer_path)  # imports transformers first, because that takes longer than the difference
    settings, split, run = DataSettings(workers=0), BatchSplit(64, 64), {"first_step": 0, "last_step": 10**6, "seed": 0}
    start = time.perf_counter()
    [batch] = next(training_batches(dataset, settings, split, rank=0, image_size=112, **run))
    seconds = time.perf_counter() - start
    assert batch.n_posts == 64 and not batch.skipped
    return {"seconds": seconds, "mb": peak_mb()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each size")
    parser.add_argument("--measure", type=int, metavar="SIZE", help=argparse.SUPPRESS)  # one measurement, as JSON
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return 0

    results: dict[int, list[dict[str, float]]] = {SMALL: [], LARGE: []}
    for _ in range(args.rounds):
        for size, measured in results.items():
            command = [sys.executable, __file__, "--measure", str(size)]
            measured.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    medians = {
        size: {key: statistics.median(m[key] for m in measured) for key in ("seconds", "mb")}
        for size, measured in results.items()
    }
    for size, median in medians.items():
        print(f"{size:>13,} examples: first batch after {median['seconds']:.3f} s, peak memory {median['mb']:.1f} MB")
    seconds, mb = (medians[LARGE][key] - medians[SMALL][key] for key in ("seconds", "mb"))
    passed = abs(seconds) <= MOST_SECONDS and abs(mb) <= MOST_MB
    ratio = medians[LARGE]["seconds"] / medians[SMALL]["seconds"]
    print(
        f"startup: {ratio:.2f}x the time, {seconds:+.3f} s (limit {MOST_SECONDS}), {mb:+.1f} MB (limit {MOST_MB:.0f}): "
        + ("pass" if passed else "FAIL")
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
