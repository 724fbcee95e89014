"""Jobs on this machine: one on each GPU (or group of GPUs), or as many as asked for on the CPU."""

import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from cromic_ds.errors import UserError
from cromic_ds.shipped import extensions_folder
from cromic_ds.tools.table.folder import Busy, JobState, TableFolder
from cromic_ds.tools.table.jobs import Slot, Stop, run_job
from cromic_ds.tools.table.plan import TableJob
from cromic_ds.tools.table.settings import TableSettings

BUSY_SECONDS = 2.0
"""Seconds after which a job that another process runs is tried again."""


class Local:
    """An `Executor` that runs jobs in threads, each of which waits for one process."""

    queued: tuple[str, ...] = ()

    def __init__(self, folder: TableFolder, slots: list[Slot], stop: Stop):
        self.folder, self.stop = folder, stop
        self.slots, self._free = len(slots), slots
        self._threads = ThreadPoolExecutor(len(slots))
        self._running: dict[Future[JobState], tuple[TableJob, Slot]] = {}
        self._busy: dict[str, float] = {}  # until when the jobs of other processes are left alone

    @property
    def running(self) -> list[str]:
        return [job.id for job, _ in self._running.values()]

    def start(self, ready: list[TableJob]) -> None:
        """Start as many of these jobs as there are free slots."""
        for job in ready:
            if not self._free:
                return
            if self._busy.get(job.id, 0.0) < time.monotonic():
                slot = self._free.pop(0)
                future = self._threads.submit(run_job, self.folder, job, slot, self.stop)
                self._running[future] = job, slot

    def wait(self) -> list[TableJob]:
        """Return the jobs that have ended or stopped, after a short wait."""
        if not self._running:  # other processes run all jobs that are ready
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
                if job.id not in self._busy:
                    state = self.folder.state(job)
                    where = f" ({state.pid} on {state.host})" if state and state.pid else ""
                    print(f"another process already runs {job.id}{where}; waiting for it")
                self._busy[job.id] = time.monotonic() + BUSY_SECONDS
        return ended

    def close(self) -> None:
        """Wait for the running jobs; after an error the caller asks them to stop first."""
        self._threads.shutdown()


def make_slots(settings: TableSettings) -> list[Slot]:
    """Return groups of `processes` GPUs, or shares of the CPU's cores. Raises UserError if a job needs more GPUs than there
    are."""
    gpus, size = visible_gpus(), settings.processes
    groups = [gpus[i : i + size] for i in range(0, len(gpus) - size + 1, size)]
    if gpus and not groups:
        raise UserError(f"processes {size}: a training needs as many GPUs, and there are {len(gpus)} here")
    count = settings.jobs or len(groups) or 1
    threads = max(1, usable_cores() // (count * size))
    return [Slot(job_environment(groups[i % len(groups)] if groups else [], threads), size) for i in range(count)]


def job_environment(gpus: list[str], threads: int) -> dict[str, str]:
    """Return this process's environment for a job on the given devices, with this installation's programs on the path."""
    variables = dict(os.environ)
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables.get('PATH', '')}"
    variables.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_folder()))
    variables.setdefault("TOKENIZERS_PARALLELISM", "false")
    variables.setdefault("OMP_NUM_THREADS", str(threads))
    if gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    else:
        variables.setdefault("DS_ACCELERATOR", "cpu")
    return variables


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(i) for i in range(count)])[:count]


def usable_cores() -> int:
    """Return the number of cores of this process; in a Slurm job, those that were allocated to it."""
    return int(os.environ.get("SLURM_CPUS_ON_NODE", 0)) or len(os.sched_getaffinity(0))
