"""`--gpus`: which devices, and what DeepSpeed's launcher shows of itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from helpers.launching import environment
from helpers.paths import REPOSITORY

from cromic_ds.engine import operations
from cromic_ds.engine.local_launch import choose_devices, launch
from cromic_ds.engine.operations import announce_compilation
from cromic_ds.errors import UserError

RANK = """
import os, sys
rank = os.environ["RANK"]
os.write(1, f"rank {rank} of {os.environ['WORLD_SIZE']}: {sys.argv[1:]}\\n".encode())
sys.exit(int(sys.argv[1]) if rank == "0" else 0)
"""


@pytest.mark.parametrize(
    ("gpus", "available", "visible", "expected"),
    [
        ("all", 4, None, [0, 1, 2, 3]),
        ("2", 4, None, [0, 1]),
        ("all", 0, None, [0, 1]),  # two processes on the CPU
        ("all", 2, "5,6", ["5", "6"]),
        ("1", 2, "5, 6", ["5"]),
        ("2", 2, "GPU-1f, GPU-2e", ["GPU-1f", "GPU-2e"]),
    ],
)
def test_devices(gpus, available, visible, expected):
    assert choose_devices(gpus, available, visible) == expected


@pytest.mark.parametrize(
    ("gpus", "available", "message"),
    [
        ("3", 2, "--gpus 3: torch can use 2 GPUs on this machine"),
        ("2", 1, "--gpus 2: torch can use 1 GPU on this machine"),
        ("1", 0, "--gpus 1: torch can use no GPUs on this machine; --gpus all starts two processes on the CPU"),
        ("0", 2, "--gpus 0: give a number of GPUs, or all"),
        ("al", 2, "--gpus al: give a number of GPUs, or all"),
        ("-1", 2, "--gpus -1: give a number of GPUs, or all"),
    ],
)
def test_gpus_that_are_not_there(gpus, available, message):
    with pytest.raises(UserError) as error:
        choose_devices(gpus, available, None)
    assert str(error.value) == message


def test_a_launched_process_launches_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="leave it out when a launcher starts cromic-ds"):
        launch("all", ["cromic_ds"])


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_launchers_lines_appear_only_if_a_process_fails_without_explaining_why(tmp_path, code):
    (tmp_path / "a_rank.py").write_text(RANK)
    program = "import sys; from cromic_ds.engine.local_launch import launch; "
    program += f"sys.exit(launch('all', ['a_rank', '{code}']))"
    env = environment(PYTHONPATH=os.pathsep.join([str(REPOSITORY), str(tmp_path)]))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    world = torch.cuda.device_count() or 2
    assert f"rank 0 of {world}: ['{code}']" in done.stdout.splitlines()
    assert len(done.stdout.splitlines()) <= world  # a rank may be stopped before it has said anything
    if code == 1:
        assert "exits with return code = 1" in done.stderr
    else:
        assert done.stderr == ""


def test_a_compilation_is_announced_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "1")
    announce_compilation(operations.COLLECTIVES)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LOCAL_RANK", "0")
    announce_compilation(operations.COLLECTIVES)
    announced = "compiling one operation of DeepSpeed (deepspeed_shm_comm), about a minute …\n"
    assert capsys.readouterr().err == announced
    built = tmp_path / operations.COLLECTIVES / f"{operations.COLLECTIVES}.so"
    built.parent.mkdir()
    built.touch()
    announce_compilation(operations.COLLECTIVES)
    assert capsys.readouterr().err == ""


def test_the_names_of_the_operations_are_deepspeeds():
    from deepspeed.ops.op_builder import CPUAdamBuilder
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    assert ShareMemCommBuilder().NAME == operations.COLLECTIVES
    assert CPUAdamBuilder.NAME == operations.CPU_ADAM
