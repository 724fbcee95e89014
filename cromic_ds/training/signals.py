"""Stop requests from outside: SIGTERM, SIGINT and SIGUSR1 (what schedulers send before they take a node away)."""

from __future__ import annotations

import os
import signal


class StopRequest:
    """Remembers that a stop was asked for; the loop reads it between steps and all ranks agree on the step.

    A second SIGINT ends the process at once: somebody at a terminal does not want to wait for a checkpoint.
    """

    def __init__(self) -> None:
        self.signal: str | None = None

    def install(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._received)
        return self

    def _received(self, number: int, _frame) -> None:
        if number == signal.SIGINT and self.signal == "SIGINT":
            os._exit(130)
        self.signal = signal.Signals(number).name
