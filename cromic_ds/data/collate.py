"""Examples to a `Batch`: ragged, so that each post stands once and padding ends at the longest of the micro-batch."""

from __future__ import annotations

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


def _batch(examples: list[LoadedExample], pad_id: int, weight: float) -> Batch:
    post_ids, post_lengths = _pad([example.post for example in examples], pad_id)
    comment_ids, lengths = _pad([comment for example in examples for comment in example.comments], pad_id)
    owner = np.repeat(np.arange(len(examples)), [len(example.comments) for example in examples])

    targets = lengths - 1  # of each comment: every token but [CLS] is predicted
    rows = np.flatnonzero(np.arange(max(comment_ids.shape[1] - 1, 0)) < targets[:, None])
    token_owner = np.repeat(owner, targets)
    per_post = np.bincount(token_owner, minlength=len(examples))
    # comments stand in the order of their posts, so a post's tokens are one run of `rows`: number them from its start
    within_post = np.arange(len(rows)) - (np.cumsum(per_post) - per_post)[token_owner]
    tokens_per_post = int(per_post.max(initial=0))

    images = None
    if examples[0].image is not None:
        # kept height-width-channel in memory: on the device this already is torch.channels_last
        images = torch.from_numpy(np.stack([example.image for example in examples])).permute(0, 3, 1, 2)
    return Batch(
        post_ids=torch.from_numpy(post_ids),
        post_lengths=torch.from_numpy(post_lengths),
        images=images,
        comment_ids=torch.from_numpy(comment_ids),
        owner=torch.from_numpy(owner),
        rows=torch.from_numpy(rows),
        post_rows=torch.from_numpy(token_owner * tokens_per_post + within_post),
        tokens_per_post=tokens_per_post,
        weights=torch.full((len(examples),), weight, dtype=torch.float32),
        ids=[example.id for example in examples],
        indices=[example.index for example in examples],
        n_targets=int(targets.sum()) if weight else 0,
    )


def blank_batch(special: SpecialTokens, image_size: int) -> Batch:
    """One post `[CLS][SEP]` on a black image with one comment `[CLS][SEP]`: computable, and of weight 0."""
    text = np.array([special.cls, special.sep])
    image = np.zeros((image_size, image_size, 3), dtype=np.uint8) if image_size else None
    return _batch([LoadedExample("", -1, text, [text], image)], special.pad, weight=0.0)


def collate(examples: list[LoadedExample | SkippedExample], *, special: SpecialTokens, image_size: int) -> Batch:
    """The `Batch` of one micro-batch; skipped examples are left out and named, and if none is left the batch is blank.

    `image_size` is the side in pixels of the square crops, 0 where the model reads no images.
    """
    loaded = [example for example in examples if isinstance(example, LoadedExample)]
    batch = _batch(loaded, special.pad, weight=1.0) if loaded else blank_batch(special, image_size)
    batch.skipped = [(example.id, example.reason) for example in examples if isinstance(example, SkippedExample)]
    return batch
