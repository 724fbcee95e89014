"""How a watcher reads a rank's stack, and where it runs. test_watcher_real.py and tests/cluster have real ranks that fail."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from helpers.launching import Job
from helpers.paths import HELPERS, REPOSITORY

from cromic_ds.engine.waiting import waiting_code
from cromic_ds.ranks.watcher import WaitingCode
from cromic_ds.run_folder import RunFolder

CODE = waiting_code()
TORCH, DEEPSPEED = CODE.collective
RUNTIME, CUDA, COLLECTIVES, ENGINE = CODE.synchronizing
MODEL = ["/venv/torch/nn/modules/module.py", f"{RUNTIME}engine.py"]


def stack(*files: str) -> str:
    """Return a stack as faulthandler writes it, innermost call first; another thread is inside a collective."""
    main, other = (
        "\n".join(f'  File "{file}", line 1 in f' for file in files_)
        for files_ in (files, [f"{TORCH}distributed_c10d.py"])
    )
    return f"Thread 0x01 (most recent call first):\n{other}\n\nCurrent thread 0x02 (most recent call first):\n{main}\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([f"{TORCH}c10d.py", f"{DEEPSPEED}torch.py", COLLECTIVES], True),
        (["/venv/deepspeed/utils/nvtx.py", f"{RUNTIME}zero/partition_parameters.py", *MODEL], True),
        ([ENGINE, "/x/cromic_ds/training/loop.py"], True),  # for the GPU
        (["/x/cromic_ds/models/common/decoder.py", "/x/cromic_ds/models/cmt/model.py", *MODEL], False),
        (["/venv/torch/utils/data/dataloader.py", "/x/cromic_ds/training/loop.py"], False),
        ([], False),
    ],
    ids=["collective", "ZeRO-3 fetches", "on a GPU", "in the model", "reads data", "no answer"],
)
def test_a_stack_that_waits_for_other_ranks(files, expected):
    assert CODE.waits(stack(*files)) is expected


def copy_of_the_package(folder: Path) -> Path:
    """Copy the package to another folder, so that its paths are not those of this repository."""
    shutil.copytree(REPOSITORY / "cromic_ds", folder / "cromic_ds", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.slow
def test_the_stack_of_a_real_rank_that_waits(tmp_path):
    """Rank 0 waits in a collective for rank 1, which sleeps: the places come from that process, wherever its code is."""
    elsewhere = copy_of_the_package(tmp_path / "elsewhere")
    script = elsewhere / "tests" / "helpers" / "waiting_worker.py"
    script.parent.mkdir(parents=True)
    shutil.copy(HELPERS / script.name, script)
    job = Job(tmp_path, [], ranks=2, script=str(script))
    try:
        places = [WaitingCode(*json.loads(wait_for(log, "places ").splitlines()[0])) for log in job.logs]
        time.sleep(0.5)  # from that line into the collective
        for process in job.processes:
            process.send_signal(signal.SIGUSR2)
        stacks = [wait_for(log, "Current thread") for log in job.logs]
    finally:
        job.kill()
    assert f"{elsewhere}/cromic_ds/ranks/collectives.py" in places[0].synchronizing
    assert [code.waits(f"Current thread{text}") for code, text in zip(places, stacks)] == [True, False], stacks


def wait_for(log: Path, text: str) -> str:
    """Return what the file contains after `text`, a moment after that has been written."""
    end = time.monotonic() + 120
    while text not in log.read_text() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.2)
    return log.read_text().partition(text)[2]


REPORTS = """
    import os, sys, time
    from cromic_ds.ranks.launcher import Ranks
    from cromic_ds.ranks.reporter import RankReporter, forget_ranks
    from cromic_ds.ranks.watcher import WaitingCode
    from cromic_ds.run_folder import RunFolder
    assert "torch" not in sys.modules
    reporter, folder = RankReporter(Ranks(), 60, WaitingCode([], [])), RunFolder(sys.argv[1])
    forget_ranks(folder)
    reporter.publish(folder, "a1")
    reporter.at("in a step", 3)
    time.sleep(0.2)
"""


def run_rank(code: str, folder: Path, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(REPORTS) + textwrap.dedent(code), str(folder)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_a_watcher_runs_from_wherever_the_package_is(tmp_path):
    elsewhere = copy_of_the_package(tmp_path / "elsewhere")
    done = run_rank("os.kill(os.getpid(), 9)", tmp_path, cwd=elsewhere)
    assert done.returncode == -signal.SIGKILL
    assert "died without reporting an error after step 3, while in a step" in done.stderr
    state = json.loads(RunFolder(tmp_path).rank_state(0).read_text())
    assert (state["state"], state["step"]) == ("killed", 3)
    assert json.loads(RunFolder(tmp_path).failure("a1").read_text())["rank"] == 0
    assert [path.name for path in (tmp_path / "ranks").iterdir() if path.name.startswith(".")] == []


def test_a_watcher_survives_the_loss_of_its_run_folder(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    code = "import shutil; shutil.rmtree(folder); reporter.at('saving', 4); time.sleep(0.3); os.kill(os.getpid(), 9)"
    done = run_rank(code, run)
    assert "died without reporting an error after step 4, while saving" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_crash_is_distinguished_from_a_kill(tmp_path):
    code = """
        import mmap, tempfile
        with tempfile.TemporaryFile() as file:
            os.truncate(file.fileno(), 4096)
            mapped = mmap.mmap(file.fileno(), 4096)
            os.truncate(file.fileno(), 0)
            mapped[0]
    """
    done = run_rank(code, tmp_path)
    assert done.returncode == -signal.SIGBUS
    assert "crashed after step 3, while in a step (Bus error: is /dev/shm full, or was a file cut off" in done.stderr
    assert 'File "<string>", line 19' in done.stderr
