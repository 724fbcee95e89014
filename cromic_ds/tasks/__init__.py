"""All tasks by name. `docs/adding_a_task.md` shows how to add one."""

from operator import attrgetter

from cromic_ds.tasks.aic_icc import AIC_ICC
from cromic_ds.tasks.base import GeneratedText, Task
from cromic_ds.tasks.flickr30k_cn import FLICKR30K_CN
from cromic_ds.tasks.fmiqa import FMIQA
from cromic_ds.tasks.muge import MUGE
from cromic_ds.tasks.predictions import Form
from cromic_ds.tasks.vqa2 import VQA2

__all__ = ["TASKS", "Task"]

# What pretraining trains; posts are prepared from raw lines or the published layout.
COMMENTS = GeneratedText(
    name="comments",
    title="Comments",
    kind="comments",
    reader=None,
    reads_text=True,
    tokenization="char",
    best_metric="perplexity",
    higher_is_better=False,
    form=Form("id", "comment", attrgetter("id"), lines=True),
)

TASKS: dict[str, Task] = {task.name: task for task in (COMMENTS, FMIQA, VQA2, AIC_ICC, FLICKR30K_CN, MUGE)}
