"""All tasks by name. `docs/adding_a_task.md` shows how to add one."""

from __future__ import annotations

from cromic_ds.tasks.aic_icc import AIC_ICC
from cromic_ds.tasks.base import Task
from cromic_ds.tasks.comments import COMMENTS
from cromic_ds.tasks.flickr30k_cn import FLICKR30K_CN
from cromic_ds.tasks.fmiqa import FMIQA
from cromic_ds.tasks.muge import MUGE
from cromic_ds.tasks.vqa2 import VQA2

__all__ = ["TASKS", "Task"]

TASKS: dict[str, Task] = {task.name: task for task in (COMMENTS, FMIQA, VQA2, AIC_ICC, FLICKR30K_CN, MUGE)}
