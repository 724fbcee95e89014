"""The tasks, by name: each binds a kind of data to its metrics and its files of predictions."""

from __future__ import annotations

from cromic_ds.tasks.base import Task
from cromic_ds.tasks.captioning import AIC_ICC, FLICKR30K_CN, MUGE
from cromic_ds.tasks.comments import COMMENTS
from cromic_ds.tasks.question_answering import FMIQA, VQA2

__all__ = ["TASKS", "Task"]

TASKS: dict[str, Task] = {task.name: task for task in (COMMENTS, FMIQA, VQA2, AIC_ICC, FLICKR30K_CN, MUGE)}
