"""Pretraining on comments."""

from __future__ import annotations

from dataclasses import dataclass

from cromic_ds.tasks import TASKS
from cromic_ds.training.run import RunSettings, run_training


@dataclass
class PretrainSettings(RunSettings):
    """One whole pretraining run."""

    out: str = "runs/pretrain"
    """Run folder. The same command with the same folder goes on where the run stopped."""


def pretrain(settings: PretrainSettings) -> None:
    """Run, or go on with, a pretraining; raises UserError before the first step for what cannot work."""
    run_training(settings, TASKS["comments"])
