"""What a guard makes of a rank's stack. (Real ranks that die, stop and hang: test_guard_real.py, tests/cluster.)"""

from __future__ import annotations

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
