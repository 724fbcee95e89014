"""How the tools show states and times on a terminal. Standard library only."""

from datetime import timedelta

# Colors of rich, for the states of runs and of the table's jobs.
STATE_COLORS = dict(running="green", finished="green", done="green", stopped="yellow", dead="red", failed="red")


def age(seconds: float) -> str:
    """Return a time span in its largest unit of which it has at least two: "4 min", "119 s"."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def duration(seconds: float) -> str:
    """Return a time span as "1:02:03"."""
    return str(timedelta(seconds=round(seconds)))
