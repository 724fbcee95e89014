"""Jobs on this machine: one on each GPU, or as many as asked for on its CPU."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from cromic_ds.errors import UserError
from cromic_ds.tools.table.folder import Busy, Folder
from cromic_ds.tools.table.jobs import Look, Slot, Stop, run_job
from cromic_ds.tools.table.plan import Job
from cromic_ds.tools.table.products import look_at
from cromic_ds.tools.table.settings import PROJECT, TableSettings

BUSY_SECONDS = 2.0
"""Until a job that another runner holds is looked at again."""


class Local:
    """Runs jobs in threads that each wait for one process."""

    def __init__(self, folder: Folder, slots: list[Slot], stop: Stop, look: Look = look_at):
        self.folder, self.stop, self.look = folder, stop, look
        self.slots = len(slots)
        self._free = slots
        self._threads = ThreadPoolExecutor(len(slots))
        self._running: dict[Future, tuple[Job, Slot]] = {}
        self._held: dict[str, float] = {}  # by another runner; until when they are left alone

    @property
    def running(self) -> list[str]:
        return [job.id for job, _ in self._running.values()]

    @property
    def queued(self) -> list[str]:
        return []

    def start(self, ready: list[Job]) -> None:
        """Start the first of these for which there is a slot."""
        for job in ready:
            if not self._free:
                return
            if self._held.get(job.id, 0.0) < time.monotonic():
                slot = self._free.pop(0)
                future = self._threads.submit(run_job, self.folder, job, slot, self.stop, look=self.look)
                self._running[future] = job, slot

    def wait(self) -> list[Job]:
        """Jobs that have come to an end or a stop, after a short wait."""
        if not self._running:  # all that is ready is held by others
            time.sleep(0.5)
            return []
        ended = []
        for future in wait(self._running, timeout=0.5, return_when=FIRST_COMPLETED).done:
            job, slot = self._running.pop(future)
            self._free.append(slot)
            try:
                future.result()
                ended.append(job)
            except Busy:
                if job.id not in self._held:
                    print(f"{job.id} is run by another process already{self._where(job)}; waiting for that")
                self._held[job.id] = time.monotonic() + BUSY_SECONDS
        return ended

    def _where(self, job: Job) -> str:
        state = self.folder.state(job)
        return f" ({state.pid} on {state.host})" if state and state.pid else ""

    def close(self) -> None:
        """Wait for what is running; after an error it is asked to stop first."""
        self._threads.shutdown()


def make_slots(settings: TableSettings) -> list[Slot]:
    """Groups of `processes` GPUs, or shares of the CPU's cores.

    Raises:
        UserError: a job needs more GPUs than there are.
    """
    gpus, size = visible_gpus(), settings.processes
    groups = [gpus[i : i + size] for i in range(0, len(gpus) - size + 1, size)]
    if gpus and not groups:
        raise UserError(f"processes {size}: a training needs as many GPUs, and there are {len(gpus)} here")
    count = settings.jobs or len(groups) or 1
    threads = max(1, cores() // (count * size))
    return [Slot(environment(groups[i % len(groups)] if groups else [], threads), size) for i in range(count)]


def environment(gpus: list[str], threads: int) -> dict[str, str]:
    """This process's, with the commands of this installation on the path, for the given devices."""
    variables = dict(os.environ)
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables.get('PATH', '')}"
    variables.setdefault("TORCH_EXTENSIONS_DIR", str(PROJECT / ".cache" / "torch_extensions"))
    variables.setdefault("TOKENIZERS_PARALLELISM", "false")
    variables.setdefault("OMP_NUM_THREADS", str(threads))
    if gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    else:
        variables.setdefault("DS_ACCELERATOR", "cpu")
    return variables


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(i) for i in range(count)])[:count]


def cores() -> int:
    """Cores of this process; in a Slurm job those that it was given."""
    return int(os.environ.get("SLURM_CPUS_ON_NODE", 0)) or len(os.sched_getaffinity(0))
