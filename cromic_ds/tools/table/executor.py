"""What `run` and `progress` know of the place where jobs run."""

from __future__ import annotations

from typing import Protocol

from cromic_ds.tools.table.plan import Job


class Executor(Protocol):
    """Where jobs run: `Local` or `Slurm`."""

    slots: int  # jobs at a time; 0 = unknown
    running: list[str]
    queued: list[str]  # handed over, not running yet

    def start(self, ready: list[Job]) -> None: ...
    def wait(self) -> list[Job]: ...
    def close(self) -> None: ...
