"""Processes of this host: their state, parent and start, and whether a group still runs."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from cromic_ds.ranks.processes import boot_id, group_runs, parent_pid, process_state, start_time


def test_a_process_from_its_start_to_its_end():
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert parent_pid(process.pid) == os.getpid()
        assert int(start_time(process.pid)) >= int(start_time(os.getpid()))
        assert group_runs(process.pid)
        process.send_signal(signal.SIGSTOP)
        wait_for_state(process.pid, "T")
        process.kill()
        wait_for_state(process.pid, "Z")
        assert not group_runs(process.pid)
    finally:
        process.kill()
        process.wait()
    assert process_state(process.pid) == ""
    assert parent_pid(process.pid) is start_time(process.pid) is start_time(None) is None


def wait_for_state(pid: int, state: str) -> None:
    end = time.monotonic() + 10
    while process_state(pid) != state and time.monotonic() < end:
        time.sleep(0.01)
    assert process_state(pid) == state


def test_the_hosts_start_has_a_name():
    assert boot_id() == boot_id() != ""
