"""Where a run's numbers, samples and messages go: metrics.jsonl always, dashboards on request."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cromic_ds.errors import UserError
from cromic_ds.tracking.console import ConsoleTracker
from cromic_ds.tracking.jsonl import JsonlTracker, read_metrics
from cromic_ds.tracking.log import setup_logging
from cromic_ds.tracking.samples import SamplesFolder
from cromic_ds.tracking.tracker import MultiTracker, NullTracker, SampleRow, TimeLeft, Tracker

__all__ = [
    "NullTracker",
    "SampleRow",
    "Tracker",
    "TrackingSettings",
    "open_trackers",
    "read_metrics",
    "setup_logging",
]


@dataclass
class TrackingSettings:
    """Where the numbers of a run go."""

    wandb: Literal["auto", "online", "offline", "off", False] = "auto"
    """Weights & Biases; auto: online where a login is found, else offline. In YAML a bare off is false: the same."""
    wandb_project: str = "cromic-ds"
    """Project of the W&B run."""
    wandb_entity: str = ""
    """User or team that owns the W&B run; empty: the login's default."""
    wandb_name: str = ""
    """Name of the W&B run; empty: the run folder's name."""
    wandb_group: str = ""
    """Group of the W&B run; empty: none."""
    wandb_tags: list[str] = field(default_factory=list)
    """Tags of the W&B run."""
    tensorboard: bool = False
    """Also write TensorBoard event files to RUN/tensorboard."""
    log_every: int = 10
    """Steps between lines on the console and in log.txt; metrics.jsonl and the dashboards have every step."""
    console: Literal["auto", "bar", "lines", "off", False] = "auto"
    """Progress on stderr; auto: a bar on a terminal, else lines."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if self.log_every < 1:
            raise UserError(f"tracking.log_every is {self.log_every}: it is a number of steps, at least 1")


def open_trackers(
    settings: TrackingSettings,
    run_folder: str | Path,
    config: dict,
    resume_step: int | None,
    total_steps: int,
    rank: int = 0,
) -> Tracker:
    """The run's tracker: a real one on rank 0, one that drops everything on the others.

    config: the resolved settings, as the dashboards show them. resume_step: the finished steps of the checkpoint that
    the run goes on from; records beyond it are dropped. None, like 0: from the start.
    """
    settings.check()
    if rank != 0:
        return NullTracker()
    run_folder = Path(run_folder)
    trackers: list[Tracker] = [JsonlTracker(run_folder, resume_step), SamplesFolder(run_folder)]
    if settings.tensorboard:
        from cromic_ds.tracking.tensorboard import TensorBoardTracker

        trackers.append(TensorBoardTracker(run_folder, resume_step))
    if settings.wandb not in ("off", False):
        from cromic_ds.tracking.wandb import WandbTracker

        trackers.append(
            WandbTracker(
                settings.wandb,
                run_folder,
                config,
                project=settings.wandb_project,
                entity=settings.wandb_entity,
                name=settings.wandb_name,
                group=settings.wandb_group,
                tags=settings.wandb_tags,
            )
        )
    console = settings.console or "off"
    trackers.append(ConsoleTracker(console, total_steps, settings.log_every, resume_step))
    return MultiTracker(trackers, TimeLeft(total_steps))
