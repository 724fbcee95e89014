"""Looking into a run: DeepSpeed's log of its collectives and its FLOPs profiler, and torch's trace of given steps."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from deepspeed.comm import comm
from deepspeed.profiling.flops_profiler import FlopsProfiler
from deepspeed.profiling.flops_profiler import profiler as flops_profiler
from deepspeed.utils.timer import SynchronizedWallClockTimer
from torch import Tensor, nn

from cromic_ds.engine.engine import Engine
from cromic_ds.errors import UserError

log = logging.getLogger(__name__)
COMMS, FLOPS, TRACES = "comms.txt", "flops_profile.txt", "profile"


@dataclass
class ProfileSettings:
    """What is measured inside a run, at the cost of its speed while it is measured."""

    comms: bool = False
    """Log each of DeepSpeed's collectives, and at the end their counts, times and bandwidths by kind and size to
    RUN/comms.txt. Every collective then waits for the device, and is remembered: for runs of some hundred steps."""
    flops_step: int = 0
    """Step, from 1, whose first forward pass is counted module by module (parameters, FLOPs, time) by DeepSpeed's FLOPs
    profiler, to RUN/flops_profile.txt; 0 = none."""
    trace: int | str = ""
    """Steps, from 1, that torch's profiler records, such as 10 or 10-12, to RUN/profile/rank-0.trace.json and so on for
    every rank, to be opened at https://ui.perfetto.dev; empty = none."""

    def check(self, total_steps: int) -> None:
        """Raise UserError for steps that are none, or that the run does not have."""
        first, last = self.traced
        if self.flops_step < 0:
            raise UserError(f"profile.flops_step is {self.flops_step}: give a step from 1, or 0 for none")
        if self.trace and not 1 <= first <= last:
            raise UserError(f"profile.trace is {self.trace!r}: give a step or a range of steps from 1, such as 10-12")
        for name, step in (("flops_step", self.flops_step), ("trace", last)):
            if step > total_steps:
                raise UserError(
                    f"profile.{name} is {getattr(self, name)}, and the run ends with step {total_steps}: give earlier steps"
                )

    @property
    def traced(self) -> tuple[int, int]:
        """First and last step of `trace`; (0, 0) where it names none."""
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", str(self.trace))
        return (int(match[1]), int(match[2] or match[1])) if match else (0, 0)

    def applied_to(self, ds_config: dict) -> dict:
        """The DeepSpeed config with its communication logger on, where it is asked for."""
        if not self.comms:
            return ds_config
        wanted = {
            "verbose": False,
            "prof_all": True,
            "debug": False,
            **ds_config.get("comms_logger", {}),
            "enabled": True,
        }
        return {**ds_config, "comms_logger": wanted}


class Profiler:
    """Measures what the settings ask for; the loop tells it of each step. Every rank has one."""

    def __init__(self, settings: ProfileSettings, folder: Path, engine: Engine, rank: int, world_size: int):
        self.settings, self.folder, self.engine = settings, folder, engine
        self.rank, self.world_size = rank, world_size
        self._trace: torch.profiler.profile | None = None
        self._marks = contextlib.ExitStack()
        self._began = False
        if settings.comms:  # from here on; before was the start-up
            comm.timers = CallTimers()
            comm.comms_logger.reset_data()

    def begin(self, step: int) -> None:
        """Step `step` (from 1) starts."""
        self._began = True
        first, last = self.settings.traced
        if first <= step <= last:
            if self._trace is None:  # a run may be resumed inside the range
                self._trace = torch.profiler.profile()
                self._trace.start()
            self._marks.enter_context(torch.profiler.record_function(f"training step {step}"))
        if step == self.settings.flops_step and self.rank == 0:
            self.engine.watch_forward = lambda: self._count_flops(step)

    def end(self, step: int) -> None:
        """The optimizer step is done; evaluation and checkpoint are not part of it."""
        self._marks.close()
        if step == self.settings.traced[1]:
            self._write_trace()

    def finish(self) -> None:
        """The training has ended, or stops early. Called by all ranks together."""
        self._write_trace()
        if self.settings.comms and self._began:  # a finished run, started again, keeps what it has
            self._write_comms()

    def _write_trace(self) -> None:
        if self._trace is None:
            return
        self._trace.stop()
        path = self.folder / TRACES / f"rank-{self.rank}.trace.json"
        path.parent.mkdir(exist_ok=True)
        self._trace.export_chrome_trace(str(path))
        self._trace = None
        log.info("trace of step %s: %s; open it at https://ui.perfetto.dev", self.settings.trace, path)

    @contextlib.contextmanager
    def _count_flops(self, step: int) -> Iterator[None]:
        """Around one forward pass.

        Not through DeepSpeed's config: its engine starts the profiler inside the model's own forward hook, too late for the
        model's own FLOPs and time, and keeps timers that wait for the device running in all other steps.
        """
        self.engine.watch_forward = contextlib.nullcontext
        profiler = FlopsProfiler(self.engine.model, self.engine.deepspeed)
        # Compiled layers call nothing that could be counted, and would be compiled anew around the counting.
        with torch.compiler.set_stance("force_eager"), linear_counted_once():
            profiler.start_profile()
            self.engine.model.apply(count_parameters)
            yield
            profiler.stop_profile()
        path = self.folder / FLOPS
        profiler.print_model_profile(step, top_modules=3, output_file=str(path))
        profiler.end_profile()
        log.info("FLOPs of the first forward pass of step %d: %s", step, path)

    def _write_comms(self) -> None:
        path, main = self.folder / COMMS, self.rank == 0
        with path.open("w") if main else contextlib.nullcontext() as file, contextlib.redirect_stdout(file):
            comm.comms_logger.log_all(print_log=main, show_straggler=self.world_size > 1)
        log.info("collectives of DeepSpeed: %s", path)


def count_parameters(module: nn.Module) -> None:
    """ZeRO-3's parameters are empty outside of their module, and so count for nothing; `ds_numel` is their whole size."""
    module.__params__ = sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters())


@contextlib.contextmanager
def linear_counted_once() -> Iterator[None]:
    """ZeRO-3's `F.linear` calls `torch.matmul`, and the profiler would count both: what is counted within is thrown away."""
    linear, counts = F.linear, (flops_profiler.module_flop_count, flops_profiler.module_mac_count)

    def unseen_inside(*args, **kwargs) -> Tensor:
        for count in counts:
            count.append([])
        output = linear(*args, **kwargs)
        for count in counts:
            count.pop()
        return output

    F.linear = unseen_inside
    yield
    F.linear = linear


class CallTimers(SynchronizedWallClockTimer):
    """DeepSpeed's timers of collectives, each call's time by itself: left alone they give, as each call's latency, the sum of
    all calls so far (`elapsed(reset=False)` in deepspeed.comm), and with it wrong bandwidths."""

    class Timer(SynchronizedWallClockTimer.Timer):
        def elapsed(self, reset: bool = True) -> float:
            return super().elapsed(reset=True)
