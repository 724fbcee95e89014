"""Score an exported model on a split of a data set, by the task's official metric."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from cromic_ds.data.dataset import Dataset, Texts, UnreadableRecord
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.errors import UserError
from cromic_ds.inference.job import InferenceSettings, Job, load, output_file
from cromic_ds.inference.scoring import teacher_forced
from cromic_ds.tasks.results import describe_data, result_json, result_table, write_result


@dataclass
class EvaluateSettings(InferenceSettings):
    """A model, the data it is scored on, and how texts are generated."""

    split: str = "val"
    """Split to score."""
    out: str | None = None
    """Result file; without it EXPORT/evaluation-TASK-SPLIT.json."""
    limit: int = 0
    """Score only the first examples; 0 = all."""
    tokenization: Literal["task", "char", "jieba", "bert"] = "task"
    """How texts are cut into words: char, jieba or bert; task = as the task's official score does."""
    meteor: bool = True
    """Score METEOR as well, where Java is."""
    resamples: int = 1000
    """Resamples of the images for the confidence intervals; 0 = no intervals."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        super().check()
        if min(self.limit, self.resamples) < 0:
            raise UserError(f"--limit {self.limit} (0 = all) and --resamples {self.resamples} must be at least 0")


def evaluate(settings: EvaluateSettings) -> None:
    """`cromic-ds evaluate`: writes the result file and prints the scores."""
    settings.check()
    dataset = open_dataset(settings.data, settings.split)
    out = output_file(Path(settings.out)) if settings.out else None
    job = Job(load(settings.export, settings.precision), dataset, settings)
    result = evaluation(job, settings)
    out = out or job.loaded.path / f"evaluation-{job.task.name}-{settings.split}.json"
    write_result(out, result)
    print(result_table(result))
    print(f"written to {out}")


def evaluation(job: Job, settings: EvaluateSettings) -> dict:
    """The result file's content: scores of decoded texts, and all that makes them repeatable.

    Beside them `loss` and `perplexity` by teacher forcing, where texts are generated.

    Raises:
        UserError: the split has nothing to score against.
    """
    dataset, task = job.dataset, job.task
    tokenization = task.choose_tokenization(settings.tokenization)
    if not any(task.has_references(texts) for _, texts in readable(dataset, settings.limit)):
        raise UserError(
            f"split {settings.split!r} of {settings.data} has no references to score against: "
            "`cromic-ds predict` writes the file that is scored elsewhere"
        )
    answered = list(chain.from_iterable(job.run(settings.limit)))
    texts = dict(readable(dataset, settings.limit))
    scored = [record for record in answered if record.index in texts]
    measured = task.measure(
        [record.text for record in scored],
        [texts[record.index] for record in scored],
        tokenization,
        settings.meteor,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    if unread := [record.problem for record in answered if record.problem]:
        measured.notes.append(f"unreadable, so without a prediction: {len(unread)} records, such as {unread[0]}")
    if task.kind != "classify":
        forced = teacher_forced(job.loss_sum, job.batches(settings.limit))
        measured.scores = {name: forced[name] for name in ("loss", "perplexity")} | measured.scores
        measured.counts["targets"] = forced["targets"]
        measured.notes.append("loss and perplexity are by teacher forcing over all references; the rest is decoded")
    return result_json(
        task,
        measured,
        data=describe_data(settings.data, dataset),
        decoding=None if job.answers else asdict(job.decoding) | {"seed": settings.seed},
        model={"export": settings.export, **job.loaded.identity()},
    )


def readable(dataset: Dataset, limit: int) -> Iterator[tuple[int, Texts]]:
    """The texts of the first `limit` records (0 = all) that are not damaged."""
    for index in range(min(limit, len(dataset)) if limit else len(dataset)):
        with suppress(UnreadableRecord):
            yield index, dataset.texts(index)
