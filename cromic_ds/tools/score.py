"""Score a file of predictions, of any system, against the references of a store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cromic_ds.data.dataset import Dataset, Texts, UnreadableRecord
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.errors import UserError, nearest
from cromic_ds.tasks import TASKS, Task
from cromic_ds.tasks.predictions import check_ids
from cromic_ds.tasks.results import describe_data, result_json, result_table, write_result


@dataclass
class ScoreSettings:
    """The predictions, the data to score them on, and how."""

    task: str = ""
    """Task: comments, fmiqa, vqa2, aic_icc, flickr30k_cn or muge."""
    predictions: str = ""
    """File of predictions in the format that the task's server takes."""
    references: str = ""
    """Store with the references."""
    split: str = "val"
    """Split that the predictions are for."""
    tokenization: Literal["task", "char", "jieba", "bert"] = "task"
    """How texts are split into words; task = as the task's official score does."""
    meteor: bool = True
    """Also score METEOR, if Java is installed."""
    resamples: int | None = 1000
    """Number of bootstrap resamples of the images, for the confidence intervals; null = no intervals."""
    seed: int = 0
    """Seed of the resamples."""
    out: str | None = None
    """Result file to write; null = the name of the predictions file with .scores.json appended."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        for name in ("task", "predictions", "references"):
            if not getattr(self, name):
                needed = "the task, the file of predictions and the store to score on"
                raise UserError(f"--{name} is missing: give {needed}")
        if self.task not in TASKS:
            raise UserError(f"--task {self.task}: unknown{nearest(self.task, TASKS)}; there are {', '.join(TASKS)}")
        if self.resamples is not None and self.resamples < 1:
            raise UserError(f"--resamples {self.resamples} must be at least 1, or null for no intervals")


def score(settings: ScoreSettings) -> None:
    """`cromic-ds score`: write the result file and print the scores.

    Raises UserError if predictions, data and task do not belong together.
    """
    out = Path(settings.out or f"{settings.predictions}.scores.json")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out {out}: {'is a folder' if out.is_dir() else 'there is no such folder'}; name a file")
    task = TASKS[settings.task]
    tokenization = task.choose_tokenization(settings.tokenization)
    dataset = open_dataset(settings.references, settings.split)
    texts = scored_records(task, dataset, settings.references)
    read = list(task.form.read(Path(settings.predictions)))
    check_ids([i for i, _ in read], [record.id for record in texts], settings.predictions)
    prediction_of = dict(read)
    predictions = [prediction_of[record.id] for record in texts]
    measured = task.measure(predictions, texts, tokenization, settings.meteor, settings.resamples or 0, settings.seed)
    data = describe_data(settings.references, dataset)
    result = result_json(task, measured, data=data, predictions=settings.predictions)
    write_result(out, result)
    print(result_table(result))
    print(f"written to {out}")


def scored_records(task: Task, dataset: Dataset, path: str) -> list[Texts]:
    """Return the records of the split. Raises UserError if they are of another task, or if none can be scored."""
    held = dataset.task or "comments"
    if held != task.name:
        raise UserError(f"{path} was prepared for {held}, not for {task.name}: give that task, or another store")
    try:
        texts = [dataset.texts(index) for index in range(len(dataset))]
    except UnreadableRecord as error:
        raise UserError(f"{path}: a record of split {dataset.split} is damaged ({error}); prepare it again") from None
    if not any(task.has_references(record) for record in texts):
        why = f"split {dataset.split} has no references, so only the task's server can score it"
        raise UserError(f"{path}: {why}; choose a split with references")
    return texts
