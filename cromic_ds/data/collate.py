"""Examples to a `Batch`: ragged, so that each post stands once and padding ends at the longest of the micro-batch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from cromic_ds.batch import Batch


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that collation itself writes: padding, and the two tokens of a blank text."""

    pad: int
    cls: int
    sep: int


@dataclass(slots=True)
class LoadedExample:
    """One example ready to be batched: texts cut to length, comments chosen, image decoded and cropped."""

    id: str
    index: int  # position in the data set
    post: np.ndarray  # [CLS] … [SEP], or empty
    comments: list[np.ndarray]  # each [CLS] … [SEP]
    image: np.ndarray | None  # (S, S, 3) uint8 RGB, or None where the model reads no images
    answer_ids: np.ndarray | None = None  # (K,), with their soft scores (K,)
    answer_scores: np.ndarray | None = None


@dataclass(slots=True)
class SkippedExample:
    """An example that could not be read; it is left out of the batch and named in `Batch.skipped`."""

    id: str
    reason: str


def _pad(texts: list[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(texts, longest) int64 right-padded ids, and their lengths."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    longest = int(lengths.max(initial=0))
    padded = np.full((len(texts), longest), pad_id, dtype=np.int64)
    if longest:
        padded[np.arange(longest) < lengths[:, None]] = np.concatenate(texts)
    return padded, lengths


def _answer_targets(examples: list[LoadedExample], n_answers: int) -> torch.Tensor:
    """(P, n_answers) float32: the soft score of each answer, 0 where nobody gave it."""
    targets = torch.zeros(len(examples), n_answers)
    for row, example in zip(targets, examples):
        if example.answer_ids is not None:
            row[torch.from_numpy(example.answer_ids).long()] = torch.from_numpy(example.answer_scores)
    return targets


def _comments(comments: list[list[np.ndarray]], pad_id: int) -> dict[str, torch.Tensor | int]:
    """Those fields of a `Batch` that follow from each post's comments."""
    comment_ids, lengths = _pad([comment for of_post in comments for comment in of_post], pad_id)
    owner = np.repeat(np.arange(len(comments)), [len(of_post) for of_post in comments])

    targets = lengths - 1  # of each comment: every token but [CLS] is predicted
    rows = np.flatnonzero(np.arange(max(comment_ids.shape[1] - 1, 0)) < targets[:, None])
    token_owner = np.repeat(owner, targets)
    per_post = np.bincount(token_owner, minlength=len(comments))
    # comments stand in the order of their posts, so a post's tokens are one run of `rows`: number them from its start
    within_post = np.arange(len(rows)) - (np.cumsum(per_post) - per_post)[token_owner]
    tokens_per_post = int(per_post.max(initial=0))
    return {
        "comment_ids": torch.from_numpy(comment_ids),
        "owner": torch.from_numpy(owner),
        "rows": torch.from_numpy(rows),
        "post_rows": torch.from_numpy(token_owner * tokens_per_post + within_post),
        "tokens_per_post": tokens_per_post,
    }


def with_comments(batch: Batch, comments: list[list[np.ndarray]], weights: np.ndarray, pad_id: int) -> Batch:
    """The same posts with other comments, and the factor of each comment's loss.

    Each comment is [CLS] …, with or without a closing [SEP]: what stands there is the target. `weights`: (N,), in the
    comments' order.
    """
    fields = _comments(comments, pad_id)
    counting = batch.weights.repeat_interleave(torch.tensor([sum(len(c) - 1 for c in of_post) for of_post in comments]))
    return dataclasses.replace(
        batch,
        **fields,
        n_targets=int(counting.count_nonzero()),
        comment_weights=torch.from_numpy(weights).float(),
    )


def _batch(examples: list[LoadedExample], pad_id: int, weight: float, n_answers: int) -> Batch:
    post_ids, post_lengths = _pad([example.post for example in examples], pad_id)
    comments = _comments([example.comments for example in examples], pad_id)
    images = None
    if examples[0].image is not None:
        # kept height-width-channel in memory: on the device this already is torch.channels_last
        images = torch.from_numpy(np.stack([example.image for example in examples])).permute(0, 3, 1, 2)
    return Batch(
        post_ids=torch.from_numpy(post_ids),
        post_lengths=torch.from_numpy(post_lengths),
        images=images,
        **comments,
        weights=torch.full((len(examples),), weight, dtype=torch.float32),
        ids=[example.id for example in examples],
        indices=[example.index for example in examples],
        n_targets=(len(examples) if n_answers else len(comments["rows"])) if weight else 0,
        answer_targets=_answer_targets(examples, n_answers) if n_answers else None,
    )


def blank_batch(special: SpecialTokens, image_size: int, n_answers: int = 0) -> Batch:
    """One post `[CLS][SEP]` on a black image with one comment `[CLS][SEP]`: computable, and of weight 0."""
    text = np.array([special.cls, special.sep])
    image = np.zeros((image_size, image_size, 3), dtype=np.uint8) if image_size else None
    return _batch([LoadedExample("", -1, text, [text], image)], special.pad, 0.0, n_answers)


def collate(
    examples: list[LoadedExample | SkippedExample], *, special: SpecialTokens, image_size: int, n_answers: int = 0
) -> Batch:
    """The `Batch` of one micro-batch; skipped examples are left out and named, and if none is left the batch is blank.

    `image_size` is the side in pixels of the square crops, 0 where the model reads no images; `n_answers` the size of the
    answer vocabulary where answers are classified, else 0.
    """
    loaded = [example for example in examples if isinstance(example, LoadedExample)]
    batch = _batch(loaded, special.pad, 1.0, n_answers) if loaded else blank_batch(special, image_size, n_answers)
    batch.skipped = [(example.id, example.reason) for example in examples if isinstance(example, SkippedExample)]
    return batch
