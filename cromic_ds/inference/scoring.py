"""Scores of a model on batches of a data set: perplexity by teacher forcing, generated texts and their scores.

Works on one process and on many: each example counts exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from cromic_ds.batch import Batch
from cromic_ds.data.dataset import Dataset, UnreadableRecord
from cromic_ds.inference.decoding import generate_texts
from cromic_ds.inference.settings import DecodingSettings
from cromic_ds.metrics.perplexity import perplexity
from cromic_ds.ranks.collectives import gather_objects, sum_over_ranks
from cromic_ds.tasks import Task
from cromic_ds.tracking import SampleRow

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from cromic_ds.models.registry import CommentModel


def teacher_forced(loss_sum: Callable[[Batch], float | Tensor], batches: Iterable[Batch]) -> dict[str, float]:
    """Return `loss`, `perplexity`, `targets` and `posts` over the batches of all ranks; `loss_sum`: a batch's Σ NLL in nats.

    The loss is in nats per target token. If answers are classified, each post is one target and there is no perplexity.
    """
    classified, total, targets, posts = False, 0.0, 0, 0
    for batch in batches:
        classified = batch.answer_targets is not None
        total += float(loss_sum(batch))
        targets += batch.n_targets
        posts += sum(i >= 0 for i in batch.indices)
    nll, n_targets, n_posts = sum_over_ranks([total, targets, posts])
    values = {"loss": nll / max(n_targets, 1), "targets": int(n_targets), "posts": int(n_posts)}
    return values if classified else {**values, "perplexity": perplexity(nll, max(int(n_targets), 1))}


def generate_predictions(
    model: CommentModel,
    tokenizer: PreTrainedTokenizerFast,
    batches: Iterable[Batch],
    decoding: DecodingSettings,
    answers: list[str] | None = None,
) -> dict[int, list[str]]:
    """Return the generated texts of all ranks, or the best of `answers` if given, by the example's index in the data set."""
    mine: dict[int, list[str]] = {}
    for batch in batches:
        if answers is not None:
            texts = [[answers[i]] for i in model.answer_logits(batch.to(model.device)).argmax(-1).tolist()]
        else:
            texts = generate_texts(model, tokenizer, batch.post_ids, batch.images, decoding)
        mine.update((index, generated) for index, generated in zip(batch.indices, texts) if index >= 0)
    return {index: texts for part in gather_objects(mine) for index, texts in part.items()}


def score_predictions(
    task: Task, dataset: Dataset, predictions: dict[int, list[str]], tokenization: str, meteor: bool = False
) -> dict[str, Any]:
    """Return the task's scores of the first text of each example."""
    indices = sorted(predictions)
    return task.score([predictions[i][0] for i in indices], [dataset.texts(i) for i in indices], tokenization, meteor)


def sample_rows(dataset: Dataset, predictions: dict[int, list[str]], count: int) -> list[SampleRow]:
    """Return the first `count` predictions with post, references and picture."""
    rows = []
    for index in sorted(predictions)[:count]:
        texts = dataset.texts(index)
        try:
            jpeg = dataset.image(index)
        except UnreadableRecord:
            jpeg = None
        rows.append(SampleRow(texts.id, texts.post, texts.comments, predictions[index], jpeg, texts.extras))
    return rows
