"""Fine-tuning on a downstream task, from a pretrained backbone or from random weights."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from cromic_ds.errors import UserError, nearest
from cromic_ds.tasks import TASKS
from cromic_ds.training.run import run_training
from cromic_ds.training.self_critical import SelfCritical, SelfCriticalSettings
from cromic_ds.training.settings import RunSettings


@dataclass
class FinetuneSettings(RunSettings):
    """One whole fine-tuning run."""

    task: str = ""
    """Task: fmiqa, vqa2, aic_icc, flickr30k_cn or muge."""
    backbone: str = ""
    """Export or run folder whose weights the model starts from, as far as they fit; empty = random weights."""
    out: str = "runs/finetune"
    """Run folder. The same command with the same folder resumes a run that was interrupted."""
    objective: Literal["likelihood", "scst"] = "likelihood"
    """likelihood: teacher forcing, or the cross-entropy of the answers. scst: self-critical training, a second stage for
    captions that starts from a model trained with likelihood."""
    scst: SelfCriticalSettings = field(default_factory=SelfCriticalSettings)

    def __post_init__(self) -> None:
        if self.backbone and self.model.init_from is None:
            self.model = replace(self.model, init_from=self.backbone)

    def check(self) -> None:
        names = [name for name in TASKS if name != "comments"]
        if self.task not in names:
            raise UserError(f"task is {self.task!r}{nearest(self.task, names)}: one of {', '.join(names)}")
        if self.backbone and self.model.init_from != self.backbone:  # they are equal in the config.yaml of a run
            raise UserError("backbone and model.init_from are the same thing: leave one of the two out")
        if self.objective == "scst" and TASKS[self.task].kind != "caption":
            raise UserError(f"objective scst is for captions, and {self.task} has none: use likelihood")


def finetune(settings: FinetuneSettings) -> None:
    """Start or resume a fine-tuning run, and export the checkpoint with the best score. Raises what `run_training` raises."""
    task = TASKS[settings.task]
    make_objective = partial(SelfCritical, settings.scst, task) if settings.objective == "scst" else None
    run_training(settings, task, fixed=("task", "objective", "scst"), export="best", make_objective=make_objective)
