"""How the tools show states, times and lists of numbers on a terminal. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

# Colors of rich, for the states of runs and of the table's jobs.
STATE_COLORS = {
    "running": "green",
    "finished": "green",
    "done": "green",
    "stopped": "yellow",
    "dead": "red",
    "failed": "red",
}


def number_ranges(numbers: Iterable[int], separator: str = ",") -> str:
    """Return [0, 1, 2, 5] as "0-2,5"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return separator.join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def rank_list(ranks: list[int]) -> str:
    """Return [0, 1, 2, 5] as "ranks 0-2, 5"."""
    return f"rank{'s' if len(ranks) > 1 else ''} {number_ranges(ranks, ', ')}"


def age(seconds: float) -> str:
    """Return a time span in its largest unit of which it has at least two: "4 min", "119 s"."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def duration(seconds: float) -> str:
    """Return a time span as "1:02:03"."""
    return str(timedelta(seconds=round(seconds)))
