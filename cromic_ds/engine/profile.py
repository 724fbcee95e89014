"""Measurements inside a run: DeepSpeed's log of its collectives and its FLOPs profiler, and torch's trace of given steps."""

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from deepspeed.comm import comm
from deepspeed.profiling.flops_profiler import FlopsProfiler
from deepspeed.profiling.flops_profiler import profiler as flops_profiler
from deepspeed.utils.timer import SynchronizedWallClockTimer
from torch import Tensor

from cromic_ds.engine.engine import Engine
from cromic_ds.errors import UserError
from cromic_ds.run_folder import RunFolder

log = logging.getLogger(__name__)


@dataclass
class ProfileSettings:
    """What is measured inside a run. Measuring makes the run slower."""

    comms: bool = False
    """Log each of DeepSpeed's collectives, and at the end write their counts, times and bandwidths by kind and size to
    RUN/comms.txt. Every collective then waits for the device and is remembered: use it for runs of some hundred steps."""
    flops_step: int | None = None
    """Step, from 1, whose first forward pass DeepSpeed's FLOPs profiler measures module by module (parameters, FLOPs, time),
    to RUN/flops_profile.txt; null = none."""
    trace: int | str | None = None
    """Steps, from 1, that torch's profiler records, such as 10 or 10-12: each rank writes RUN/profile/rank-N.trace.json, to
    be opened at https://ui.perfetto.dev; null = none."""

    def check(self) -> None:
        if self.flops_step is not None and self.flops_step < 1:
            raise UserError(f"profile.flops_step is {self.flops_step}: give a step from 1, or null for none")
        if self.trace is not None and (self.traced is None or not 1 <= self.traced[0] <= self.traced[1]):
            raise UserError(f"profile.trace is {self.trace!r}: give a step or a range of steps from 1, such as 10-12")

    def check_steps(self, total_steps: int) -> None:
        """Raise UserError for steps that the run does not have."""
        for name, last in (("flops_step", self.flops_step), ("trace", self.traced and self.traced[1])):
            if last and last > total_steps:
                value = getattr(self, name)
                raise UserError(
                    f"profile.{name} is {value}, and the run ends with step {total_steps}: give earlier steps"
                )

    @property
    def traced(self) -> tuple[int, int] | None:
        """First and last step of `trace`."""
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", str(self.trace))
        return (int(match[1]), int(match[2] or match[1])) if match else None

    def applied_to(self, ds_config: dict[str, Any]) -> dict[str, Any]:
        """Return the DeepSpeed config, with its communication logger on if `comms` is set."""
        if not self.comms:
            return ds_config
        defaults = {"verbose": False, "prof_all": True, "debug": False}
        return {**ds_config, "comms_logger": {**defaults, **ds_config.get("comms_logger", {}), "enabled": True}}


class Profiler:
    """Measures what the settings ask for; the loop calls it around each step. Every rank has one."""

    def __init__(self, settings: ProfileSettings, folder: RunFolder, engine: Engine, rank: int, world_size: int):
        self.settings, self.folder, self.engine = settings, folder, engine
        self.rank, self.world_size = rank, world_size
        self._trace: torch.profiler.profile | None = None
        self._marks = contextlib.ExitStack()
        self._began = False
        if settings.comms:  # the start-up is not counted
            comm.timers = CallTimers()
            comm.comms_logger.reset_data()

    def begin(self, step: int) -> None:
        """Call before step `step` (from 1)."""
        self._began = True
        traced = self.settings.traced
        if traced and traced[0] <= step <= traced[1]:
            if self._trace is None:  # a run may be resumed inside the range
                self._trace = torch.profiler.profile()
                self._trace.start()
            self._marks.enter_context(torch.profiler.record_function(f"training step {step}"))
        if step == self.settings.flops_step and self.rank == 0:
            self.engine.watch_forward = lambda: self._count_flops(step)

    def end(self, step: int) -> None:
        """Call after the optimizer step, before evaluation and checkpoint."""
        self._marks.close()
        if self.settings.traced and step == self.settings.traced[1]:
            self._write_trace()

    def finish(self) -> None:
        """Call after the last step of this start. Collective."""
        self._write_trace()
        if self.settings.comms and self._began:  # a finished run that is started again keeps its file
            self._write_comms()

    def _write_trace(self) -> None:
        if self._trace is None:
            return
        self._trace.stop()
        path = self.folder.trace(self.rank)
        path.parent.mkdir(exist_ok=True)
        self._trace.export_chrome_trace(str(path))
        self._trace = None
        log.info("trace of step %s: %s; open it at https://ui.perfetto.dev", self.settings.trace, path)

    @contextlib.contextmanager
    def _count_flops(self, step: int) -> Iterator[None]:
        """Profile one forward pass.

        This does not use DeepSpeed's config, because its engine starts the profiler inside the model's own forward hook, too
        late for the model's own FLOPs and time, and then runs timers that wait for the device in all other steps.
        """
        self.engine.watch_forward = contextlib.nullcontext
        profiler = FlopsProfiler(self.engine.model, self.engine.deepspeed)
        # Compiled layers call nothing that could be counted, and would be compiled again around the counting.
        with torch.compiler.set_stance("force_eager"), linear_counted_once():
            profiler.start_profile()
            self.engine.model.apply(count_parameters)
            yield
            profiler.stop_profile()
        path = self.folder.flops_profile
        profiler.print_model_profile(step, top_modules=3, output_file=str(path))
        profiler.end_profile()
        log.info("FLOPs of the first forward pass of step %d: %s", step, path)

    def _write_comms(self) -> None:
        path, main = self.folder.collectives, self.rank == 0
        with path.open("w") if main else contextlib.nullcontext() as file, contextlib.redirect_stdout(file):
            comm.comms_logger.log_all(print_log=main, show_straggler=self.world_size > 1)
        log.info("collectives of DeepSpeed: %s", path)


def count_parameters(module: Any) -> None:
    """Note a module's number of parameters for DeepSpeed's profiler. Outside of their module those of ZeRO-3
    are empty; `ds_numel` is their unsharded size."""
    module.__params__ = sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters())


@contextlib.contextmanager
def linear_counted_once() -> Iterator[None]:
    """Let DeepSpeed's profiler count `F.linear` alone: ZeRO-3's version calls `torch.matmul`, and both would count."""
    linear, counts = F.linear, (flops_profiler.module_flop_count, flops_profiler.module_mac_count)

    def uncounted_inside(*args: Any, **kwargs: Any) -> Tensor:
        for count in counts:
            count.append([])
        output = linear(*args, **kwargs)
        for count in counts:
            count.pop()
        return output

    F.linear = uncounted_inside
    yield
    F.linear = linear


class CallTimers(SynchronizedWallClockTimer):
    """DeepSpeed's timers of collectives, corrected to give the time of each call.

    Its report gives the sum of all calls so far as each call's latency (`elapsed(reset=False)` in deepspeed.comm), and with it
    wrong bandwidths.
    """

    class Timer(SynchronizedWallClockTimer.Timer):
        def elapsed(self, reset: bool = True) -> float:
            return super().elapsed(reset=True)
