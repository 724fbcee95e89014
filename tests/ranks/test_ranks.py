"""Ranks from every launcher's environment; the collective helpers in two real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from helpers.launching import environment
from helpers.paths import HELPERS, REPOSITORY

from cromic_ds.engine import process_group
from cromic_ds.errors import UserError
from cromic_ds.ranks import collectives, launcher, rendezvous
from cromic_ds.ranks.launcher import Ranks, first_host, free_port, name_ranks, processes_per_host, ranks_from

SRUN = {
    **{"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456"},
    "SLURM_STEP_ID": "0",
    **{"SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"},
}


def test_torchrun_and_deepspeed():
    environment = {
        **{"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
        **{"MASTER_ADDR": "node0", "MASTER_PORT": "29511"},
    }
    assert ranks_from(environment) == Ranks(5, 8, 1, 4, "node0", 29511)
    assert not ranks_from(environment).is_main


def test_srun():
    assert ranks_from(SRUN) == Ranks(9, 16, 1, 8, "gpu07", 20000 + 123456 % 20000)
    assert ranks_from({**SRUN, "MASTER_ADDR": "head", "MASTER_PORT": "5000"}) == Ranks(9, 16, 1, 8, "head", 5000)


def test_each_process_drives_a_gpu():
    four = ranks_from({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"})
    rendezvous.check_devices(four, 4, {})
    rendezvous.check_devices(four, 1, SRUN)  # --gpus-per-task=1
    for count, environ in ((2, {}), (2, SRUN), (1, {})):
        with pytest.raises(UserError, match=rf"has {count} GPUs for 4 processes.*slots={count}"):
            rendezvous.check_devices(four, count, environ)


def test_ranks_that_do_not_come_are_named(monkeypatch):
    """And a port that another program has."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    port, soon = free_port(), timedelta(seconds=1)
    with pytest.raises(UserError, match=rf"rank 1 on host \S+ cannot reach rank 0 at 127.0.0.1:{port}"):
        rendezvous.meet(Ranks(1, 3, 1, 3, "127.0.0.1", port), soon)
    with pytest.raises(UserError, match=rf"^1 of 3 ranks came to 127.0.0.1:{port} within 1 s; missing: 1, 2\."):
        rendezvous.meet(Ranks(0, 3, 0, 3, "127.0.0.1", port), soon)
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {taken} of 127.0.0.1 is in use"):
            rendezvous.meet(Ranks(0, 3, 0, 3, "127.0.0.1", taken), soon)
    assert rendezvous.meet(Ranks(), soon) is None


def test_torchrun_below_srun_counts_torchruns_processes():
    ranks = ranks_from({**SRUN, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a"})
    assert (ranks.rank, ranks.world_size, ranks.local_rank) == (1, 2, 1)


def test_a_single_process_and_a_batch_script_without_srun():
    assert ranks_from({}) == Ranks(0, 1, 0, 1, "127.0.0.1", 0)
    assert ranks_from({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == Ranks()


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, 4),  # torchrun
        ({"LOCAL_SIZE": "2", "WORLD_SIZE": "8"}, 2),  # deepspeed
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "16"}, 16),
        ({"WORLD_SIZE": "8"}, 8),
        ({}, 1),
    ],
)
def test_processes_per_host(environment, count):
    assert processes_per_host(environment) == count


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "1", "LOCAL_RANK": "1"}, "the launcher set RANK, LOCAL_RANK but not WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "the launcher set WORLD_SIZE but not RANK"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "the launcher set SLURM_STEP_NUM_TASKS but not SLURM_PROCID"),
    ],
)
def test_half_of_a_launchers_variables_is_an_error(environment, message):
    with pytest.raises(UserError, match=message):
        ranks_from(environment)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("gpu[3,5]", "gpu3"),
        ("node-a1", "node-a1"),
        ("node-a1,node-b2", "node-a1"),
        ("rack1-[001-004]", "rack1-001"),
        ("", ""),
    ],
)
def test_first_host_of_a_compressed_list(nodelist, host):
    assert first_host(nodelist) == host


def test_ranks_as_text():
    assert [name_ranks(ranks) for ranks in ([7], [5, 0, 2, 1], [3, 1])] == ["rank 7", "ranks 0-2, 5", "ranks 1, 3"]


def test_the_launchers_environment_is_read_without_torch():
    code = "import sys, cromic_ds.ranks.launcher, cromic_ds.ranks.processes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert launcher.local_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert launcher.local_device() == torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # srun shows each process its own GPU only
    assert launcher.local_device() == torch.device("cuda", 0)


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
