"""Collation of examples into a `Batch`: each post occurs once, and padding ends at the longest text of the micro-batch."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cromic_ds.batch import Batch
from cromic_ds.data.dataset import UnreadableRecord


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that collation writes itself: padding, and the two tokens of an empty text."""

    pad: int
    cls: int
    sep: int


@dataclass(slots=True)
class LoadedExample:
    """One example ready for a batch: texts cut to length, comments chosen, image decoded and cropped."""

    id: str
    index: int  # position in the data set
    post: np.ndarray  # [CLS] … [SEP], or empty
    comments: list[np.ndarray]  # each [CLS] … [SEP]
    image: np.ndarray | None  # (S, S, 3) uint8 RGB, or None where the model reads no images
    answer_ids: np.ndarray | None = None  # (K,)
    answer_scores: np.ndarray | None = None  # (K,) their soft scores


def _pad(texts: list[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 ids padded on the right, (texts, longest), and the lengths, (texts,)."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    longest = int(lengths.max(initial=0))
    padded = np.full((len(texts), longest), pad_id, dtype=np.int64)
    if longest:
        padded[np.arange(longest) < lengths[:, None]] = np.concatenate(texts)
    return padded, lengths


def _answer_targets(examples: list[LoadedExample], n_answers: int) -> torch.Tensor:
    """Return (P, n_answers) float32: the soft score of each answer, 0 for answers that nobody gave."""
    targets = torch.zeros(len(examples), n_answers)
    for row, example in zip(targets, examples):
        if example.answer_ids is not None and example.answer_scores is not None:
            row[torch.from_numpy(example.answer_ids).long()] = torch.from_numpy(example.answer_scores)
    return targets


def _comments(comments: list[list[np.ndarray]], pad_id: int) -> dict[str, Any]:
    """Return the fields of a `Batch` that follow from the comments of each post."""
    comment_ids, lengths = _pad([comment for of_post in comments for comment in of_post], pad_id)
    owner = np.repeat(np.arange(len(comments)), [len(of_post) for of_post in comments])

    targets = lengths - 1  # per comment: every token but [CLS] is predicted
    rows = np.flatnonzero(np.arange(max(comment_ids.shape[1] - 1, 0)) < targets[:, None])
    token_owner = np.repeat(owner, targets)
    per_post = np.bincount(token_owner, minlength=len(comments))
    # comments are in the order of their posts, so a post's tokens are one run of `rows`: number them from its start
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
    """Return the batch with other comments for each post, whose losses count with the factors `weights`, (N,).

    A comment is [CLS] …, with or without a closing [SEP]. All its tokens but [CLS] are targets.
    """
    fields = _comments(comments, pad_id)
    counting = batch.weights.repeat_interleave(torch.tensor([sum(len(c) - 1 for c in of_post) for of_post in comments]))
    n_targets = int(counting.count_nonzero())
    return replace(batch, **fields, n_targets=n_targets, comment_weights=torch.from_numpy(weights).float())


def _batch(examples: list[LoadedExample], pad_id: int, weight: float, n_answers: int) -> Batch:
    post_ids, post_lengths = _pad([example.post for example in examples], pad_id)
    comments = _comments([example.comments for example in examples], pad_id)
    pixels = [example.image for example in examples if example.image is not None]  # of all examples, or of none
    # height, width, channel in memory: on the device this already is torch.channels_last
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) if pixels else None
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
    """Return a batch that can be computed and has weight 0: one post `[CLS][SEP]`, one such comment and a black image."""
    text = np.array([special.cls, special.sep])
    image = np.zeros((image_size, image_size, 3), dtype=np.uint8) if image_size else None
    return _batch([LoadedExample("", -1, text, [text], image)], special.pad, 0.0, n_answers)


def collate(
    examples: list[LoadedExample | UnreadableRecord], *, special: SpecialTokens, image_size: int, n_answers: int = 0
) -> Batch:
    """Return the `Batch` of one micro-batch; a `blank_batch` if none of its examples could be read.

    image_size: side of the square crops in pixels, 0 if the model reads no images. n_answers: size of the answer vocabulary
    if answers are classified, else 0.
    """
    loaded = [example for example in examples if isinstance(example, LoadedExample)]
    batch = _batch(loaded, special.pad, 1.0, n_answers) if loaded else blank_batch(special, image_size, n_answers)
    batch.skipped = [(example.id, example.reason) for example in examples if isinstance(example, UnreadableRecord)]
    return batch
