"""What a guard makes of a rank's stack. (Real ranks that die, stop and hang: test_guard_real.py, tests/cluster.)"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

from cromic_ds.training.guard_process import waits

SITE = "/venv/lib/python3.11/site-packages"
MODEL = [f"{SITE}/torch/nn/modules/module.py", f"{SITE}/deepspeed/runtime/engine.py"]


def stack(*files: str) -> str:
    """As faulthandler writes it, innermost call first; another thread is inside a collective."""
    main, other = (
        "\n".join(f'  File "{file}", line 1 in f' for file in files_)
        for files_ in (files, [f"{SITE}/torch/distributed/x.py"])
    )
    return f"Thread 0x01 (most recent call first):\n{other}\n\nCurrent thread 0x02 (most recent call first):\n{main}\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([f"{SITE}/torch/distributed/c10d.py", f"{SITE}/deepspeed/comm/torch.py", "/x/training/distributed.py"], True),
        ([f"{SITE}/deepspeed/utils/nvtx.py", f"{SITE}/deepspeed/runtime/zero/partition_parameters.py", *MODEL], True),
        (["/x/cromic_ds/training/engine.py", "/x/cromic_ds/training/loop.py"], True),  # for the GPU
        (["/x/cromic_ds/models/decoder.py", "/x/cromic_ds/models/cmt.py", *MODEL], False),
        ([f"{SITE}/torch/utils/data/dataloader.py", "/x/cromic_ds/training/loop.py"], False),
        ([], False),
    ],
    ids=["collective", "ZeRO-3 fetches", "on a GPU", "in the model", "reads data", "no answer"],
)
def test_a_stack_that_waits_for_other_ranks(files, expected):
    assert waits(stack(*files)) is expected


def test_a_rank_that_crashes_is_told_from_one_that_was_killed():
    crash = """
        import mmap, os, tempfile
        from cromic_ds.training.distributed import Ranks
        from cromic_ds.training.guard import Guard
        Guard(Ranks(), 60).at("reading data", 7)
        with tempfile.TemporaryFile() as file:
            os.truncate(file.fileno(), 4096)
            mapped = mmap.mmap(file.fileno(), 4096)
            os.truncate(file.fileno(), 0)
            mapped[0]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(crash)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGBUS
    assert "crashed after step 7, while reading data (Bus error: is /dev/shm full, or was a file cut off" in done.stderr
    assert 'File "<string>", line 10' in done.stderr
