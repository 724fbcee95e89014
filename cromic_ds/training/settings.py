"""All settings of a training run. Those of other rooms are defined beside the code that they configure."""

import math
from dataclasses import dataclass, field
from typing import Literal

from cromic_ds.data.loader import DataSettings
from cromic_ds.engine.profile import ProfileSettings
from cromic_ds.errors import UserError
from cromic_ds.inference.settings import EvalSettings
from cromic_ds.models.common.kernels import KernelChoice
from cromic_ds.models.settings import ModelSettings
from cromic_ds.tracking import TrackingSettings
from cromic_ds.training.optimizer import OptimizerSettings


@dataclass
class LoopSettings:
    """How long a run trains, and on how many posts at a time."""

    epochs: float = 5.0
    """Passes over the training split. Not used if `steps` is given."""
    steps: int | None = None
    """Optimizer steps in total; null = from `epochs`."""
    global_batch: int = 64
    """Posts per optimizer step, over all ranks and accumulation steps."""
    micro_batch: int | None = None
    """Posts per rank in one forward pass; null = the largest that divides a rank's share, at most 64 on a GPU, 8 on a CPU."""
    activation_checkpointing: bool = False
    """Recompute the activations of the transformer layers in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the transformer layers with torch.compile (ZeRO stages 0 to 2)."""
    ema_decay: float | None = None
    """Evaluate and export an exponential moving average of the weights with this decay, such as 0.999; null = the weights."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a better score of the task; null = never."""

    def check(self) -> None:
        if not 0 < self.epochs < math.inf:
            raise UserError(f"loop.epochs must be above 0, and it is {self.epochs}")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"loop.steps is {self.steps}: give a number of steps, or null to train for loop.epochs")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"loop.ema_decay is {self.ema_decay}: give a decay between 0 and 1, or null for no average")
        if self.patience is not None and self.patience < 1:
            raise UserError(f"loop.patience is {self.patience}: give a number of evaluations, or null for never")


@dataclass
class CheckpointSettings:
    """When checkpoints are written, and how many are kept."""

    every: int | None = 500
    """Steps between checkpoints; null = only at the end, and after each evaluation that is the best so far."""
    keep_last: int = 2
    """Newest checkpoints to keep; the best one is kept as well."""
    in_background: bool = True
    """Train while a checkpoint is written from a copy in host memory (up to 16 bytes per parameter, all ranks together);
    false = wait until it is written."""

    def check(self) -> None:
        if self.every is not None and self.every < 1:
            raise UserError(f"checkpoint.every is {self.every}: give a number of steps, or null for only at the end")
        if self.keep_last < 1:
            raise UserError(f"checkpoint.keep_last is {self.keep_last}: keep at least 1")


@dataclass
class GuardSettings:
    """When a step is skipped, and when a run that makes no progress is ended."""

    hang_timeout: float = 900.0
    """Seconds without progress (a step, a batch of an evaluation, a piece of a checkpoint) after which a rank counts as hanging
    and the run is ended on all hosts; before the first step at least 600."""
    max_nonfinite: int = 5
    """End the run after this many skipped steps in a row. A step is skipped if a loss or gradient is not finite, or a loss is
    above `max_loss_ratio`."""
    max_loss_ratio: float | None = None
    """Skip a step, on all ranks, if the mean loss of a micro-batch is above this many times (such as 5) the running mean of the
    loss over about the last 50 steps; null = never."""

    def check(self) -> None:
        if self.hang_timeout <= 0:
            raise UserError(f"guard.hang_timeout is {self.hang_timeout}: give seconds above 0 (a day is 86400)")
        if self.max_nonfinite < 1:
            raise UserError(f"guard.max_nonfinite is {self.max_nonfinite}: give at least 1 step")
        if self.max_loss_ratio is not None and not 1 < self.max_loss_ratio < math.inf:
            raise UserError(f"guard.max_loss_ratio is {self.max_loss_ratio}: give a number above 1, or null for never")


@dataclass
class RunSettings:
    """One whole run."""

    out: str = "runs/run"
    """Run folder. The same command with the same folder resumes a run that was interrupted."""
    seed: int = 0
    """Seed of everything that is random in the run."""
    ds_config: str = "zero3"
    """DeepSpeed JSON: a path, or the name of one in ds_configs/."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Format that the run computes in; auto = the fastest that the device computes natively."""
    kernels: KernelChoice = "auto"
    """Implementations of layer norm, output layer with loss, and attention: auto (the fastest that is installed) or torch
    (plain PyTorch)."""
    kernels_debug: dict[str, str] = field(default_factory=dict)
    """For debugging: single implementations by operation, such as {attention: math, memory_format: contiguous}; docs/model.md
    lists them."""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optim: OptimizerSettings = field(default_factory=OptimizerSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    profile: ProfileSettings = field(default_factory=ProfileSettings)
