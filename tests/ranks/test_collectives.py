"""The collective operations, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers.paths import HELPERS, REPOSITORY

from cromic_ds.engine import process_group
from cromic_ds.ranks import collectives


def test_the_helpers_in_one_process():
    model = torch.nn.BatchNorm1d(2)
    collectives.average_buffers(model)
    assert model.running_var.tolist() == [1, 1]
    assert collectives.sum_over_ranks([1, 2.5]) == [1, 2.5]
    assert collectives.gather_objects("x") == ["x"]
    assert collectives.from_main("x") == "x"
    collectives.barrier()
    process_group.stop()


def test_the_helpers_in_two_processes(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HELPERS / "buffers_worker.py")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            **{"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], outputs
    for rank, (out, _) in enumerate(outputs):
        answer = json.loads(out.splitlines()[-1])
        assert answer["mean"] == [0.5, 0.5]
        assert answer["var"] == [2.0, 3.0]
        assert answer["tracked"] == 7 + rank  # a count is no statistic
        assert answer["sum"] == pytest.approx([3, 0.2], abs=1e-15)
        assert answer["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert answer["from_main"] == "said by 0"
