"""Ranks that meet at rank 0's address, and what is wrong if they do not."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from helpers.launching import environment

from cromic_ds.errors import UserError
from cromic_ds.ranks import rendezvous
from cromic_ds.ranks.launcher import Ranks, free_port, ranks_from


def test_each_process_drives_a_gpu():
    four = ranks_from({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"})
    rendezvous.check_devices(four, 4, {})
    rendezvous.check_devices(four, 1, {"SLURM_STEP_ID": "0"})  # --gpus-per-task=1
    for count, environ in ((2, {}), (2, {"SLURM_STEP_ID": "0"}), (1, {})):
        with pytest.raises(UserError, match=rf"has {count} GPUs for 4 processes.*slots={count}"):
            rendezvous.check_devices(four, count, environ)


def test_absent_ranks_and_a_port_in_use_are_named(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    port, soon = free_port(), timedelta(seconds=1)
    with pytest.raises(UserError, match=rf"rank 1 on host \S+ cannot reach rank 0 at 127.0.0.1:{port}"):
        rendezvous.meet(Ranks(1, 3, 1, 3, "127.0.0.1", port), soon)
    with pytest.raises(UserError, match=rf"^1 of 3 ranks came to 127.0.0.1:{port} within 1 s; missing: ranks 1-2\."):
        rendezvous.meet(Ranks(0, 3, 0, 3, "127.0.0.1", port), soon)
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {taken} of 127.0.0.1 is in use"):
            rendezvous.meet(Ranks(0, 3, 0, 3, "127.0.0.1", taken), soon)
    assert rendezvous.meet(Ranks(), soon) is None


@pytest.mark.slow
def test_killed_ranks_leave_no_shared_memory(tmp_path):
    code = (
        "from cromic_ds.engine import process_group as p; from cromic_ds.ranks import collectives as c; "
        "p.start(); print(c.sum_over_ranks([1.0]), flush=True); input()"
    )
    port = str(free_port())
    processes = []
    for rank in range(2):
        about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        env = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **{k: str(v) for k, v in about.items()})
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, "-c", code], env=env, **pipes))
    try:
        for process in processes:  # DeepSpeed prints before
            assert any("[2.0]" in line for line in iter(process.stdout.readline, ""))
            mapped = Path(f"/proc/{process.pid}/maps").read_text()
            assert f"_{port}_0 (deleted)" in mapped and f"_{port}_1 (deleted)" in mapped
        assert not list(Path("/dev/shm").glob(f"*_{port}_*"))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
