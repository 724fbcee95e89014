"""A stop request is remembered, and a second SIGINT ends the process. test_pretrain_real.py stops all ranks together."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from cromic_ds.ranks.signals import StopRequest

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture
def request_() -> Iterator[StopRequest]:
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield StopRequest().install()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_remembered_by_name(request_, number):
    assert request_.signal is None
    os.kill(os.getpid(), number)
    assert request_.signal == number.name


def test_a_second_sigint_exits_at_once(request_, monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    os.kill(os.getpid(), signal.SIGINT)
    assert codes == []
    os.kill(os.getpid(), signal.SIGINT)
    assert codes == [130]


def test_a_sigterm_between_them_changes_nothing(request_, monkeypatch):
    """Launchers answer a SIGINT with a SIGTERM to the ranks."""
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    assert codes == [130]


def test_a_second_sigterm_does_not(request_, monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("left"))
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert request_.signal == "SIGTERM"
