"""The learning rate of each step."""

from __future__ import annotations

import math

from cromic_ds.training.optimizer import OptimizerSettings


def learning_rate(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """Return the learning rate of step 0 ≤ `step` < `total_steps`: linear warm-up from lr / warm-up to lr, then the schedule.

    Linear and cosine schedules reach `min_lr_fraction` at step `total_steps`, one after the last, so that the last step still
    learns something.
    """
    warmup = math.ceil(settings.warmup_fraction * total_steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.lr
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    left = 1 - progress if settings.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return settings.lr * (settings.min_lr_fraction + (1 - settings.min_lr_fraction) * left)
