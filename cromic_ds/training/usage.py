"""Speed of a run and what it uses: rates, FLOPs, MFU, memory, share of the time that is spent waiting for data."""

import time
from collections.abc import Callable, Sequence

import psutil
import torch

from cromic_ds.batch import Batch
from cromic_ds.engine.engine import StepResult

# Dense peak of the matrix units in TFLOP/s for 16-bit operands, from the vendors' data sheets, by the name that CUDA reports.
PEAK_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "A10": 125, "V100": 125, "T4": 65}


def peak_tflops(device: torch.device) -> float | None:
    """Return the 16-bit peak of one device in TFLOP/s, or None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((float(peak) for key, peak in PEAK_TFLOPS.items() if key in name), None)


class Usage:
    """Wall-clock rates from one step to the next. `restart` excludes what happened between two steps."""

    def __init__(self, forward_flops: Callable[[Batch], float], device: torch.device):
        self.forward_flops = forward_flops
        self.device = device
        self.peak = peak_tflops(device)
        self.process = psutil.Process()
        self.restart()

    def restart(self) -> None:
        self.since = time.perf_counter()

    def step(self, result: StepResult, batches: Sequence[Batch], waited: float) -> dict[str, float]:
        """Return values for the log; `waited`: seconds that this rank waited for data.

        FLOPs are those of the forward and the backward pass of this rank's batches, without recomputation, on one device.
        """
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        if self.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self.device)  # the peak of what torch allocated
        else:
            memory = self.process.memory_info().rss
        tflops = 3 * sum(map(self.forward_flops, batches)) / seconds / 1e12
        values = {
            "seconds_per_step": seconds,
            "posts_per_second": result.n_posts / seconds,
            "tokens_per_second": result.n_targets / seconds,
            "tflops": tflops,
            "data_wait": waited / seconds,
            "memory_gb": memory / 1e9,
        }
        if self.peak:
            values["mfu"] = tflops / self.peak
        return values
