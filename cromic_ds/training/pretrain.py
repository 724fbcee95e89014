"""Pretraining on comments."""

from dataclasses import dataclass

from cromic_ds.tasks import TASKS
from cromic_ds.training.run import run_training
from cromic_ds.training.settings import RunSettings


@dataclass
class PretrainSettings(RunSettings):
    """One whole pretraining run."""

    out: str = "runs/pretrain"
    """Run folder. The same command with the same folder resumes a run that was interrupted."""


def pretrain(settings: PretrainSettings) -> None:
    """Start or resume a pretraining run. Raise UserError, before the first step, for what cannot work."""
    run_training(settings, TASKS["comments"])
