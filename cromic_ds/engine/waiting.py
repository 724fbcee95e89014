"""The code that a rank runs while it waits for its peers. Its watcher uses it to distinguish waiting from hanging."""

from pathlib import Path
from types import ModuleType

import deepspeed.comm
import deepspeed.runtime
import torch.cuda
import torch.distributed

from cromic_ds.engine import engine
from cromic_ds.ranks import collectives
from cromic_ds.ranks.watcher import WaitingCode


def waiting_code() -> WaitingCode:
    """Return the files and folders of that code, from the modules as the interpreter has loaded them."""
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
    """Return the folder of a package with a slash at its end."""
    return f"{Path(str(package.__file__)).parent}/"
