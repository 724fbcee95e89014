"""What the training loop sees of tracking: one small interface, and its fan-out to the real trackers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class SampleRow:
    """One example of an evaluation, as people look at it."""

    id: str
    post: str
    references: list[str]
    generated: list[str]
    jpeg: bytes | None = None
    extras: dict = field(default_factory=dict)


class Tracker:
    """Where a run's numbers and samples go; this one drops them (every rank but 0 has it)."""

    def log(self, step: int, values: dict[str, float | int | str], kind: str) -> None:
        """Records `values` after `step` finished steps; `kind` is "train", "eval" or another short name."""

    def samples(self, step: int, rows: list[SampleRow]) -> None:
        """Records what the model generated for a fixed set of examples after `step` finished steps."""

    def finish(self) -> None:
        """Writes out what is pending; more calls do nothing."""


NullTracker = Tracker


class MultiTracker(Tracker):
    """Passes everything to each of its trackers; adds `seconds_left` to the records of kind "train"."""

    def __init__(self, trackers: Sequence[Tracker], clock: TimeLeft):
        self._trackers = trackers
        self._clock = clock

    def log(self, step: int, values: dict[str, float | int | str], kind: str) -> None:
        if kind == "train" and (seconds_left := self._clock.after(step)) is not None:
            values = {**values, "seconds_left": round(seconds_left, 1)}
        for tracker in self._trackers:
            tracker.log(step, values, kind)

    def samples(self, step: int, rows: list[SampleRow]) -> None:
        for tracker in self._trackers:
            tracker.samples(step, rows)

    def finish(self) -> None:
        with contextlib.ExitStack() as stack:  # every tracker is finished, even after one that raises
            for tracker in reversed(self._trackers):
                stack.callback(tracker.finish)


class TimeLeft:
    """Wall-clock seconds left in the run, evaluations and checkpoints included, from a running mean of the pace."""

    MOMENTUM = 0.95

    def __init__(self, total_steps: int):
        self._total_steps = total_steps
        self._last: tuple[int, float] | None = None
        self._seconds_per_step: float | None = None

    def after(self, step: int) -> float | None:
        """Seconds left after `step`; None on the first call, whose step holds warm-up costs and has no start time."""
        now = time.monotonic()
        if self._last is not None and step > self._last[0]:
            pace = (now - self._last[1]) / (step - self._last[0])
            old = self._seconds_per_step
            self._seconds_per_step = pace if old is None else self.MOMENTUM * old + (1 - self.MOMENTUM) * pace
        self._last = (step, now)
        if self._seconds_per_step is None:
            return None
        return max(0, self._total_steps - step) * self._seconds_per_step
