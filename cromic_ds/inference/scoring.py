"""Evaluation: perplexity over a split and scores of generated texts on its first examples, each counted exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cromic_ds.batch import Batch
from cromic_ds.data.dataset import Dataset, UnreadableRecord
from cromic_ds.errors import UserError
from cromic_ds.inference.decoding import DecodingSettings, generate_texts
from cromic_ds.metrics.perplexity import perplexity
from cromic_ds.ranks.collectives import gather_objects, sum_over_ranks
from cromic_ds.tasks import Task
from cromic_ds.tracking import SampleRow


def greedy() -> DecodingSettings:
    return DecodingSettings(beams=1)


@dataclass
class EvalSettings:
    """When and on what a run is judged."""

    every: int = 500
    """Steps between evaluations; 0 = only at the end."""
    examples: int = 0
    """Examples of the evaluation split for the perplexity; 0 = all."""
    generate: int = 200
    """First examples of the split that texts are generated for and scored; 0 = none."""
    pictures: int = 8
    """Generated examples shown with their pictures."""
    micro_batch: int = 32
    """Posts per rank in one evaluation batch."""
    tokenization: Literal["task", "char", "jieba", "bert"] = "task"
    """How texts are cut into words for BLEU and the like: char, jieba, bert, or task: as the task's official score does."""
    decoding: DecodingSettings = field(default_factory=greedy)
    """How texts are generated."""

    def check(self) -> None:
        """Raise UserError for values that cannot work: the first evaluation may be hours away."""
        self.decoding.check()
        if self.micro_batch < 1 or min(self.every, self.examples, self.generate, self.pictures) < 0:
            raise UserError("eval: micro_batch must be at least 1; every, examples, generate and pictures at least 0")


def teacher_forced(loss_sum: Callable[[Batch], float], batches: Iterable[Batch]) -> dict[str, float]:
    """{"loss", "perplexity", "targets", "posts"}: per target token, over all ranks' batches.

    Where answers are classified a post is a target, and there is no perplexity.
    """
    classified = False
    total, targets, posts = 0.0, 0, 0
    for batch in batches:
        classified = batch.answer_targets is not None
        total += float(loss_sum(batch))
        targets += batch.n_targets
        posts += sum(i >= 0 for i in batch.indices)
    total, targets, posts = sum_over_ranks([total, targets, posts])
    targets = int(targets)
    values = {"loss": total / max(targets, 1), "targets": targets, "posts": int(posts)}
    return values if classified else {**values, "perplexity": perplexity(total, max(targets, 1))}


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batches: Iterable[Batch],
    decoding: DecodingSettings,
    answers: list[str] | None = None,
) -> dict[int, list[str]]:
    """Generated texts, or the best of the `answers` where these are given, by the example's index in the data set, from
    all ranks."""
    mine: dict[int, list[str]] = {}
    for batch in batches:
        if answers is not None:
            best = model.answer_logits(batch.to(model.device)).argmax(-1).tolist()
            texts = [[answers[i]] for i in best]
        else:
            texts = generate_texts(model, tokenizer, batch.post_ids, batch.images, decoding)
        mine.update((index, generated) for index, generated in zip(batch.indices, texts) if index >= 0)
    return {index: texts for part in gather_objects(mine) for index, texts in part.items()}


def score(
    task: Task, dataset: Dataset, predictions: dict[int, list[str]], tokenization: str, meteor: bool = False
) -> dict:
    """The task's scores of the first text of each example."""
    indices = sorted(predictions)
    return task.score([predictions[i][0] for i in indices], [dataset.texts(i) for i in indices], tokenization, meteor)


def sample_rows(dataset: Dataset, predictions: dict[int, list[str]], count: int) -> list[SampleRow]:
    """The first `count` predictions with post, references and picture."""
    rows = []
    for index in sorted(predictions)[:count]:
        texts = dataset.texts(index)
        try:
            jpeg = dataset.image(index)
        except UnreadableRecord:
            jpeg = None
        rows.append(SampleRow(texts.id, texts.post, texts.comments, predictions[index], jpeg, texts.extras))
    return rows
