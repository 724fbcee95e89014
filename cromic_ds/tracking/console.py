"""What a person sees of a run's progress: a bar on a terminal, one dense line every so many steps elsewhere."""

from __future__ import annotations

import datetime
import logging
import sys

from cromic_ds.tracking.log import FILE_ONLY
from cromic_ds.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

# The names that the training loop gives its numbers, and how a line shows them; others are in metrics.jsonl alone.
DENSE = {
    "loss": "loss {:.4f}",  # nats per target token
    "perplexity": "ppl {:.2f}",
    "lr": "lr {:.2e}",
    "grad_norm": "grad {:.3f}",
    "posts_per_second": "{:.1f} posts/s",
    "tokens_per_second": "{:.0f} tok/s",  # target tokens
    "tflops": "{:.2f} TFLOP/s",  # per device
    "mfu": "MFU {:.1%}",
    "data_wait": "data {:.1%}",  # share of the time spent waiting for data
    "memory_gb": "mem {:.2f} GB",  # peak
    "skipped_steps": "skipped steps {:.0f}",
    "skipped_records": "skipped records {:.0f}",
}
ONLY_WHERE_NOT_ZERO = {"skipped_steps", "skipped_records"}
ON_BAR = ("loss", "perplexity", "lr", "posts_per_second", "data_wait", *sorted(ONLY_WHERE_NOT_ZERO))


class ConsoleTracker(Tracker):
    """Progress through the run's log (stderr and log.txt); as a bar, the lines of kind "train" go to log.txt alone.

    mode: "bar", "lines", "off" (log.txt alone), or "auto": the bar where stderr is a terminal, else lines.
    """

    def __init__(self, mode: str, total_steps: int, log_every: int, resume_step: int | None = None):
        if mode == "auto":
            mode = "bar" if sys.stderr.isatty() else "lines"
        self._mode = mode
        self._total_steps = total_steps
        self._log_every = log_every
        self._last_printed: int | None = None
        self._bar = None
        if mode == "bar":
            from tqdm import tqdm

            # smoothing 0.05: its pace is a running mean, as evaluations and checkpoints make single steps long.
            self._bar = tqdm(
                total=total_steps, initial=resume_step or 0, unit="step", dynamic_ncols=True, smoothing=0.05
            )

    def log(self, step: int, values: dict[str, float | int | str], kind: str) -> None:
        if kind != "train":
            shown = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
            logger.info("%s after step %d/%d  %s", kind, step, self._total_steps, shown, extra=self._route("off"))
            return
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(_dense(values, ON_BAR)), refresh=False)
            self._bar.update(step - self._bar.n)
        # The first line comes at once: whoever starts a run wants to see that it moves.
        if step % self._log_every == 0 or step == self._total_steps or self._last_printed is None:
            self._last_printed = step
            parts = [f"step {step}/{self._total_steps}", *_dense(values, DENSE)]
            if "seconds_left" in values:
                parts.append(f"left {datetime.timedelta(seconds=round(values['seconds_left']))}")
            logger.info("  ".join(parts), extra=self._route("bar", "off"))

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _route(self, *quiet_modes: str) -> dict[str, bool]:
        return {FILE_ONLY: self._mode in quiet_modes}


def _dense(values: dict, names) -> list[str]:
    return [
        DENSE[name].format(values[name])
        for name in names
        if values.get(name) is not None and not (name in ONLY_WHERE_NOT_ZERO and not values[name])
    ]


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
