"""The interface that the training loop uses, and the tracker that passes everything on to the real ones."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Values: TypeAlias = Mapping[str, float | int | str]
"""Numbers and short texts by name. Numbers may also be those of numpy or torch."""


@dataclass(slots=True)
class SampleRow:
    """One example of an evaluation, for people to look at."""

    id: str
    post: str
    references: list[str]
    generated: list[str]
    jpeg: bytes | None = None
    extras: dict[str, Any] = field(default_factory=dict)


class Tracker:
    """Where a run's numbers and samples go. This base class drops them; ranks other than 0 use it."""

    def log(self, step: int, values: Values, kind: str) -> None:
        """Record `values` after `step` finished steps; `kind` is "train", "eval" or another short name."""

    def samples(self, step: int, rows: list[SampleRow]) -> None:
        """Record what the model generated for a fixed set of examples after `step` finished steps."""

    def finish(self) -> None:
        """Write what is pending; more calls do nothing."""


class MultiTracker(Tracker):
    """Passes everything to each of its trackers; adds `seconds_left` to the records of kind "train"."""

    def __init__(self, trackers: Sequence[Tracker], clock: TimeLeft):
        self._trackers, self._clock = trackers, clock

    def log(self, step: int, values: Values, kind: str) -> None:
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
    """Wall-clock seconds left in the run, including evaluations and checkpoints, from a running mean of the pace."""

    MOMENTUM = 0.95

    def __init__(self, total_steps: int):
        self._total_steps = total_steps
        self._last: tuple[int, float] | None = None
        self._seconds_per_step: float | None = None

    def after(self, step: int) -> float | None:
        """Return the seconds left after `step`; None on the first call, whose step includes warm-up and has no start time."""
        now, old = time.monotonic(), self._seconds_per_step
        if self._last is not None and step > self._last[0]:
            pace = (now - self._last[1]) / (step - self._last[0])
            self._seconds_per_step = pace if old is None else self.MOMENTUM * old + (1 - self.MOMENTUM) * pace
        self._last = (step, now)
        mean = self._seconds_per_step
        return None if mean is None else max(0, self._total_steps - step) * mean
