"""From settings to a run's tracker."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cromic_ds.errors import UserError
from cromic_ds.tracking.console import ConsoleTracker
from cromic_ds.tracking.jsonl import JsonlTracker
from cromic_ds.tracking.samples import SamplesFolder
from cromic_ds.tracking.tracker import MultiTracker, TimeLeft, Tracker


@dataclass
class TrackingSettings:
    """Where the numbers of a run go."""

    wandb: Literal["auto", "online", "offline", "off", False] = "auto"
    """Weights & Biases; auto is online if a login is found, offline otherwise. YAML reads a bare off as false, which means off.
    Project, name, entity, group and tags are W&B's own environment variables: WANDB_PROJECT, WANDB_NAME, WANDB_ENTITY,
    WANDB_RUN_GROUP, WANDB_TAGS."""
    tensorboard: bool = False
    """Also write TensorBoard event files to RUN/tensorboard."""
    log_every: int = 10
    """Steps between lines on the console and in log.txt; metrics.jsonl and the dashboards have every step."""
    console: Literal["auto", "bar", "lines", "off", False] = "auto"
    """Progress on stderr; auto is a bar on a terminal, lines otherwise."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if self.log_every < 1:
            raise UserError(f"tracking.log_every is {self.log_every}: it is a number of steps, at least 1")


def open_trackers(
    settings: TrackingSettings,
    run_folder: Path,
    config: dict[str, Any],
    resume_step: int | None,
    total_steps: int,
    rank: int = 0,
) -> Tracker:
    """Return the run's tracker on rank 0, and one that drops everything on the other ranks.

    config: the resolved settings, as the dashboards show them. resume_step: finished steps of the checkpoint that the run
    resumes from; later records are dropped. None or 0: the run starts from the beginning.
    """
    if rank != 0:
        return Tracker()
    trackers: list[Tracker] = [JsonlTracker(run_folder, resume_step), SamplesFolder(run_folder)]
    if settings.tensorboard:
        from cromic_ds.tracking.tensorboard import TensorBoardTracker

        trackers.append(TensorBoardTracker(run_folder, resume_step))
    if settings.wandb not in ("off", False):
        from cromic_ds.tracking.wandb import WandbTracker

        trackers.append(WandbTracker(settings.wandb, run_folder, config))
    trackers.append(ConsoleTracker(settings.console or "off", total_steps, settings.log_every, resume_step))
    return MultiTracker(trackers, TimeLeft(total_steps))
