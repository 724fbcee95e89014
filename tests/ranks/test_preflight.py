"""Clocks of hosts that differ. tests/cluster has the other checks, with real ranks."""

from __future__ import annotations

import logging

import pytest

from cromic_ds.ranks import preflight


@pytest.mark.parametrize(("off", "said"), [(-3600.0, "-3600 s off that of node1"), (90.0, "+90 s off"), (2.0, "")])
def test_a_clock_that_is_off_is_named(monkeypatch, caplog, off, said):
    monkeypatch.setattr(preflight, "gather_objects", lambda mine: [("node1", mine[1]), ("node2", mine[1] + off)])
    with caplog.at_level(logging.WARNING):
        assert preflight.clock_skew() == pytest.approx(abs(off))
    assert (f"the clock of host node2 is {said}" in caplog.text) if said else not caplog.text
