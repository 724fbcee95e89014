"""Stop requests from outside: SIGTERM, SIGINT and SIGUSR1 (what schedulers send before they take a node away)."""

from __future__ import annotations

import os
import signal
from types import FrameType


class StopRequest:
    """Remembers a stop request; the loop reads it between steps, and all ranks agree on the step.

    A second SIGINT ends the process at once, because a user at a terminal does not want to wait for a checkpoint.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.interrupts = 0

    def install(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._received)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGUSR1))  # `cli.script` lets them wait
        return self

    def _received(self, number: int, _frame: FrameType | None) -> None:
        # Only SIGINT counts: launchers answer one with a SIGTERM to the ranks.
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 1:
            os._exit(130)
        self.signal = signal.Signals(number).name
