"""Progress of a job: a bar on a terminal, elsewhere a plain line every few seconds."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 10.0


class ProgressBar:
    """Shows what part of a job is done, its rate and the time left.

    `done` is the part that was done before, by a job that is resumed now. It does not count for the rate.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0):
        self.what, self.total, self.unit = what, total, unit
        self._first, self._start, self._last_line = done, time.monotonic(), time.monotonic()
        console = Console()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[status]}"),
                TimeRemainingColumn(compact=True),
                console=console,
            )
            self._task = self._bar.add_task(what, total=total, completed=done, status=unit)

    def __enter__(self) -> ProgressBar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of the total is done, and a note such as the number of rejected lines."""
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._start, 1e-9)
        status = f"{self.unit}  {rate:,.0f}/s" + (f"  {note}" if note else "")
        if self._bar:
            self._bar.update(self._task, completed=done, status=status)
        elif now - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = now
            left = f"{(self.total - done) / rate:,.0f} s left" if rate > 0 else "time left unknown"
            print(f"{self.what}  {done:,}/{self.total:,} {status}  {left}", flush=True)
