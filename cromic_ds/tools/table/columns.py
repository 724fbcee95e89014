"""The columns of the published table."""

from cromic_ds.tasks import TASKS

_TASKS = sorted((task for task in TASKS.values() if task.table_scores), key=lambda task: task.table_place)
TASK_NAMES = {task.name: task.title for task in _TASKS}
SCORES = {task.name: task.table_scores for task in _TASKS}  # task → score → short heading
