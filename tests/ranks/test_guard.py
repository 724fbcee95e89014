"""What a guard makes of a rank's stack. (Real ranks that die, stop and hang: test_guard_real.py, tests/cluster.)"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from helpers.launching import Job
from helpers.paths import HELPERS

from cromic_ds.engine.waiting import waiting_code
from cromic_ds.ranks.guard_process import WaitingCode

CODE = waiting_code()
TORCH, DEEPSPEED = CODE.collective
RUNTIME, CUDA, COLLECTIVES, ENGINE = CODE.synchronizing
MODEL = ["/venv/torch/nn/modules/module.py", f"{RUNTIME}engine.py"]


def stack(*files: str) -> str:
    """A stack as faulthandler writes it, innermost call first; another thread is inside a collective."""
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


@pytest.mark.slow
def test_the_stack_of_a_real_rank_that_waits(tmp_path):
    """Rank 0 waits in a collective for rank 1, which sleeps: the places come from that process, wherever its code is."""
    job = Job(tmp_path, [], ranks=2, script=str(HELPERS / "waiting_worker.py"))
    try:
        places = [WaitingCode(*json.loads(wait_for(log, "places ").splitlines()[0])) for log in job.logs]
        time.sleep(0.5)  # from that line into the collective
        for process in job.processes:
            process.send_signal(signal.SIGUSR2)
        stacks = [wait_for(log, "Current thread") for log in job.logs]
    finally:
        job.kill()
    assert [code.waits(f"Current thread{text}") for code, text in zip(places, stacks)] == [True, False], stacks


def wait_for(log, text: str) -> str:
    """What the file has behind `text`, a moment after that is there."""
    end = time.monotonic() + 120
    while text not in log.read_text() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.2)
    return log.read_text().partition(text)[2]


def test_a_rank_that_crashes_is_told_from_one_that_was_killed():
    crash = """
        import mmap, os, tempfile
        from cromic_ds.ranks.guard_process import WaitingCode
        from cromic_ds.ranks.launcher import Ranks
        from cromic_ds.ranks.guard import Guard
        Guard(Ranks(), 60, WaitingCode([], [])).at("reading data", 7)
        with tempfile.TemporaryFile() as file:
            os.truncate(file.fileno(), 4096)
            mapped = mmap.mmap(file.fileno(), 4096)
            os.truncate(file.fileno(), 0)
            mapped[0]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(crash)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGBUS
    assert "crashed after step 7, while reading data (Bus error: is /dev/shm full, or was a file cut off" in done.stderr
    assert 'File "<string>", line 11' in done.stderr
