"""Fine-tuning on a downstream task, from a pretrained backbone or from random weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from cromic_ds.errors import UserError, nearest
from cromic_ds.tasks import TASKS
from cromic_ds.training.run import RunSettings, run_training
from cromic_ds.training.self_critical import SelfCritical, SelfCriticalSettings


@dataclass
class FinetuneSettings(RunSettings):
    """One whole fine-tuning run."""

    task: str = ""
    """Task: fmiqa, vqa2, aic_icc, flickr30k_cn or muge."""
    backbone: str = ""
    """Export or run folder whose weights the model starts from, as far as they fit; empty = random weights."""
    out: str = "runs/finetune"
    """Run folder. The same command with the same folder goes on where the run stopped."""
    objective: Literal["likelihood", "scst"] = "likelihood"
    """likelihood: teacher forcing (or the answers' cross-entropy); scst: self-critical, a second stage for captions that
    starts from a model trained with likelihood."""
    scst: SelfCriticalSettings = field(default_factory=SelfCriticalSettings)


def finetune(settings: FinetuneSettings) -> None:
    """Run, or go on with, a fine-tuning; exports the checkpoint with the best score of the task.

    Raises:
        UserError: settings, data, backbone or run folder that cannot work, before any training step.
    """
    names = [name for name in TASKS if name != "comments"]
    if settings.task not in names:
        raise UserError(f"task is {settings.task!r}{nearest(settings.task, names)}: one of {', '.join(names)}")
    task = TASKS[settings.task]
    if settings.backbone:
        if settings.model.init_from not in (None, settings.backbone):  # a run's config.yaml contains both
            raise UserError("backbone and model.init_from are the same thing: leave one of the two out")
        settings = replace(settings, model=replace(settings.model, init_from=settings.backbone))
    objective = None
    if settings.objective == "scst":
        if task.kind != "caption":
            raise UserError(f"objective scst is for captions, and {task.name} has none: use likelihood")
        objective = SelfCritical(settings.scst, task)
    run_training(settings, task, fixed=("task", "objective", "scst"), export="best", objective=objective)
