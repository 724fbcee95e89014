"""What a task is: one object with everything that distinguishes it from other tasks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

from cromic_ds.data.dataset import Dataset, Texts
from cromic_ds.data.limits import COMMENT_TOKENS, POST_TOKENS
from cromic_ds.errors import UserError
from cromic_ds.metrics.measured import Measured
from cromic_ds.metrics.texts import measure_texts
from cromic_ds.tasks.predictions import Form, image_id
from cromic_ds.tasks.reader import OfficialReader


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One task: its official files, lengths, scores, prediction files and columns of the results table.

    Kinds: `comments` are generated under posts, an `answer` is generated for a question, `classify` chooses the answer from a
    fixed vocabulary, and a `caption` is generated for an image.
    """

    name: str  # in settings, stores and results
    title: str  # in tables for people
    kind: Literal["comments", "answer", "classify", "caption"]
    reader: type[OfficialReader] | None  # reads the official files; None where there are none
    reads_text: bool  # whether the model is given a text besides the image
    max_post_tokens: int = POST_TOKENS  # longest post or question, [CLS] and [SEP] included
    max_comment_tokens: int = COMMENT_TOKENS  # longest stored and longest generated comment, answer or caption
    tokenization: str  # the official score's
    best_metric: str  # the evaluation metric that chooses the best checkpoint
    higher_is_better: bool = True
    form: Form  # of prediction files
    table_scores: dict[str, str] = field(default_factory=dict)  # columns of the results table: score → short heading
    table_note: str = ""  # what a reader of these columns must know
    table_place: int = 100  # the columns of tasks with a smaller number come first

    def choose_tokenization(self, wanted: str) -> str:
        """Return `wanted`, or the official score's tokenization for "task". Raises UserError if the task has no choice."""
        return self.tokenization if wanted == "task" else wanted

    @abstractmethod
    def measure(
        self, predictions: list[str], texts: list[Texts], tokenization: str, meteor: bool, resamples: int, seed: int = 0
    ) -> Measured:
        """Score one prediction per record over the whole corpus, with 95% intervals from `resamples` (0: no intervals). Raises
        UserError if nothing can be scored."""

    def score(self, predictions: list[str], texts: list[Texts], tokenization: str, meteor: bool) -> dict[str, Any]:
        """Return the same scores without intervals in one flat dict with `n_items`, `tokenization` and `notes`."""
        return self.measure(predictions, texts, tokenization, meteor, resamples=0).flat()

    @abstractmethod
    def has_references(self, texts: Texts) -> bool:
        """Whether the record can be scored. Records of hidden test splits cannot."""


@dataclass(frozen=True, kw_only=True)
class GeneratedText(Task):
    """A task whose texts are scored against the record's comments: captioning, diversity and grounding scores."""

    best_metric: str = "cider"
    exact_match: bool = False  # also score whether the text equals a reference

    def measure(
        self, predictions: list[str], texts: list[Texts], tokenization: str, meteor: bool, resamples: int, seed: int = 0
    ) -> Measured:
        """Score with `measure_texts`. METEOR takes 10 s to start."""
        return measure_texts(predictions, texts, tokenization, meteor, resamples, seed, self.exact_match)

    def has_references(self, texts: Texts) -> bool:
        return any(comment.strip() for comment in texts.comments)


def captioning(
    name: str, title: str, reader: type[OfficialReader], tokenization: str, text_key: str, lines: bool, table_place: int
) -> GeneratedText:
    """Return a captioning task: the model is given the image alone. text_key, lines: see `Form`."""
    return GeneratedText(
        name=name,
        title=title,
        kind="caption",
        reader=reader,
        reads_text=False,
        max_comment_tokens=72,  # [CLS] and [SEP] included
        tokenization=tokenization,
        form=Form("image_id", text_key, image_id, lines),
        table_scores={"cider": "C", "bleu_4": "B@4", "rouge_l": "R"},
        table_place=table_place,
    )


def check_task(task: Task, dataset: Dataset, path: str) -> None:
    """Raise UserError if the data was prepared for another task."""
    if dataset.task != (None if task.kind == "comments" else task.name):
        was = f"for task {dataset.task}" if dataset.task else "from posts with comments"
        raise UserError(f"{path} was prepared {was}, and this is task {task.name}: name a store of that task")
