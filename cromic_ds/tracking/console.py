"""A run's progress for people: a bar on a terminal; elsewhere a dense line every `log_every` steps."""

import logging
import os
import sys
import time
from collections.abc import Iterable
from datetime import timedelta

from cromic_ds.tracking.log import FILE_ONLY
from cromic_ds.tracking.tracker import Tracker, Values

log = logging.getLogger(__name__)

# The names that the training loop gives its numbers, and how a line shows them; others are only in metrics.jsonl.
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
ONLY_IF_NOT_ZERO = {"skipped_steps", "skipped_records"}
ON_BAR = ("loss", "perplexity", "lr", "posts_per_second", "data_wait", *sorted(ONLY_IF_NOT_ZERO))


class ConsoleTracker(Tracker):
    """Progress through the run's log (stderr and log.txt). Beside a bar, lines of kind "train" go only to log.txt.

    mode: "bar", "lines", "off" (only log.txt), or "auto": the bar if stderr is a terminal, lines otherwise.
    """

    def __init__(self, mode: str, total_steps: int, log_every: int, resume_step: int | None = None):
        if mode == "auto":
            mode = "bar" if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown") else "lines"
        self._mode, self._total_steps, self._log_every = mode, total_steps, log_every
        self._has_printed = False
        self._bar = TrainingBar(total_steps, resume_step or 0) if mode == "bar" else None

    def log(self, step: int, values: Values, kind: str) -> None:
        if kind != "train":
            shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
            log.info("%s after step %d/%d  %s", kind, step, self._total_steps, shown, extra=self._route("off"))
            return
        seconds = values.get("seconds_left")
        left = [] if seconds is None else [f"left {timedelta(seconds=round(float(seconds)))}"]
        if self._bar is not None:
            self._bar.update(step, "  ".join([*_dense(values, ON_BAR), *left]))
        # The first line is printed at once, so that whoever starts a run sees that it moves.
        if step % self._log_every == 0 or step == self._total_steps or not self._has_printed:
            self._has_printed = True
            line = "  ".join([f"step {step}/{self._total_steps}", *_dense(values, DENSE), *left])
            log.info("%s", line, extra=self._route("bar", "off"))

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _route(self, *quiet_modes: str) -> dict[str, bool]:
        return {FILE_ONLY: self._mode in quiet_modes}


class TrainingBar:
    """A live line at the bottom of the terminal. What is written to `sys.stderr` meanwhile appears above it."""

    def __init__(self, total_steps: int, step: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        console = Console(stderr=True, force_terminal=True, force_interactive=True)
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            auto_refresh=False,
            redirect_stdout=False,  # standard output may be a file
        )
        self._task = self._progress.add_task("", total=total_steps, completed=step)
        self._drawn = time.monotonic()
        self._progress.start()
        console.show_cursor(True)  # a killed process could not bring a hidden one back

    def update(self, step: int, text: str) -> None:
        self._progress.update(self._task, completed=step, description=text)
        now = time.monotonic()
        if now - self._drawn >= 0.1:  # seconds
            self._drawn = now
            self._progress.refresh()

    def close(self) -> None:
        """Draw the bar for the last time; more calls do nothing."""
        self._progress.stop()


def _dense(values: Values, names: Iterable[str]) -> list[str]:
    shown = [name for name in names if values.get(name) is not None and (name not in ONLY_IF_NOT_ZERO or values[name])]
    return [DENSE[name].format(values[name]) for name in shown]
