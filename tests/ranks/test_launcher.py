"""Ranks from every launcher's environment, and this process's device."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from helpers.paths import REPOSITORY

from cromic_ds.errors import UserError
from cromic_ds.ranks import launcher
from cromic_ds.ranks.launcher import Ranks, first_host, name_ranks, processes_per_host, ranks_from

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
