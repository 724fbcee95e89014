"""pretrain.py with a fault: FAULT=kind:rank:step in the environment. It strikes before the batch of `step` (from 0) is read."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from cromic_ds.cli.commands import script
from cromic_ds.training import loop
from cromic_ds.training import run as training_run

kind, *where = os.environ["FAULT"].split(":")
rank, step = map(int, where)
train, read = loop.train, loop.next_batches


def strike(run: loop.Run) -> None:
    model = run.learner.engine.model
    if kind == "hang":
        time.sleep(3600)
    elif kind == "raise":
        raise RuntimeError("as the test wished")
    elif kind == "memory":  # what is mapped now and a little more, as a memory limit of the job would have it
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 20), mapped + (1 << 20)))
    elif kind == "nan":
        weight = next(p for p in model.parameters() if p.requires_grad)
        once = weight.register_hook(lambda gradient: (once.remove(), gradient * torch.nan)[1])
    elif kind == "spike":
        once = model.register_forward_hook(lambda model, given, loss: (once.remove(), 100 * loss)[1])
    elif kind == "disk":  # the run's parent, a tmpfs, is full but for what the log takes
        time.sleep(2)  # until the checkpoint before is written
        folder = Path(run.settings.out)
        size = shutil.disk_usage(folder).used + (1 << 20)
        subprocess.run(["mount", "-o", f"remount,size={size}", folder.parent], check=True)
    elif kind == "clock":
        now = time.time
        time.time = lambda: now() - 3600
    else:
        raise ValueError(kind)


def faulty_train(run: loop.Run) -> None:
    def next_batches(batches):
        if (run.learner.ranks.rank, run.learner.state.step) == (rank, step):
            strike(run)
        return read(batches)

    loop.next_batches = next_batches
    train(run)


training_run.train = faulty_train
sys.argv[0] = "pretrain.py"
script("pretrain")
