"""What every task is to a run: which kind of data it reads, what it is judged by, and how its predictions are filed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from cromic_ds.data.dataset import Dataset, Texts
from cromic_ds.errors import UserError
from cromic_ds.metrics.measured import Measured
from cromic_ds.metrics.texts import measure_texts
from cromic_ds.tasks.predictions import Form


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task by its name in settings, stores and results."""

    name: str
    kind: Literal["comments", "answer", "classify", "caption"]  # answer: generated; classify: among a fixed vocabulary
    reads_text: bool  # False: the image is all that the model is given
    tokenization: str  # that of the official score
    best_metric: str  # the evaluation metric that chooses the best checkpoint
    higher_is_better: bool
    max_new_tokens: int  # of the longest generated text
    form: Form  # of prediction files

    def choose_tokenization(self, wanted: str) -> str:
        """`wanted`, or for "task" that of the official score. Raises UserError for a task that has no choice."""
        return self.tokenization if wanted == "task" else wanted

    @abstractmethod
    def measure(
        self,
        predictions: list[str],
        texts: list[Texts],
        tokenization: str,
        meteor: bool,
        resamples: int = 1000,
        seed: int = 0,
    ) -> Measured:
        """Scores of one prediction per record over the whole corpus, with 95% intervals from `resamples` (0 = without).

        Raises UserError where nothing can be scored.
        """

    def score(self, predictions: list[str], texts: list[Texts], tokenization: str, meteor: bool) -> dict:
        """The same scores without intervals, in one flat dict with `n_items`, `tokenization` and `notes`."""
        return self.measure(predictions, texts, tokenization, meteor, resamples=0).flat()

    @abstractmethod
    def has_references(self, texts: Texts) -> bool:
        """Whether the record can be scored; those of hidden test splits cannot."""

    def write_predictions(self, file: TextIO, pairs: Iterable[tuple[Texts, str]]) -> None:
        """Exactly what the task's server takes. file: opened as UTF-8."""
        self.form.write(file, pairs)

    def read_predictions(self, path: Path) -> Iterator[tuple[str, str]]:
        """(record id, text) of each prediction. Raises UserError with the line or entry of what is malformed."""
        return self.form.read(path)


@dataclass(frozen=True, kw_only=True)
class GeneratedText(Task):
    """Texts scored against the record's comments: captioning, diversity and grounding scores."""

    exact_match: bool = False

    def measure(
        self,
        predictions: list[str],
        texts: list[Texts],
        tokenization: str,
        meteor: bool,
        resamples: int = 1000,
        seed: int = 0,
    ) -> Measured:
        """See `measure_texts`. METEOR takes 10 s to start."""
        return measure_texts(predictions, texts, tokenization, meteor, resamples, seed, self.exact_match)

    def has_references(self, texts: Texts) -> bool:
        return any(comment.strip() for comment in texts.comments)


def check_task(task: Task, dataset: Dataset, path: str) -> None:
    """Raises UserError where the data was prepared for another task."""
    if dataset.task != (None if task.kind == "comments" else task.name):
        was = f"for task {dataset.task}" if dataset.task else "from posts with comments"
        raise UserError(f"{path} was prepared {was}, and this is task {task.name}: name a store of that task")


def captioning(name: str, tokenization: str, form: Form) -> GeneratedText:
    return GeneratedText(
        name=name,
        kind="caption",
        reads_text=False,
        tokenization=tokenization,
        best_metric="cider",
        higher_is_better=True,
        max_new_tokens=72,
        form=form,
    )
