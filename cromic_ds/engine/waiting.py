"""Which code a rank runs while it waits for its peers: what its guard needs to tell a waiting rank from a stuck one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import deepspeed.comm
import deepspeed.runtime
import torch.cuda
import torch.distributed

from cromic_ds.engine import engine
from cromic_ds.ranks import collectives
from cromic_ds.ranks.guard_process import WaitingCode


def waiting_code() -> WaitingCode:
    """Return the files and folders of the code that waits, as the interpreter has loaded it."""
    return WaitingCode(
        collective=[folder_of(torch.distributed), folder_of(deepspeed.comm)],
        synchronizing=[
            folder_of(deepspeed.runtime),
            folder_of(torch.cuda),
            str(collectives.__file__),
            str(engine.__file__),
        ],
    )


def folder_of(package: ModuleType) -> str:
    return f"{Path(str(package.__file__)).parent}/"
