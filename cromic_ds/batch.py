"""`Batch`: all that flows from the data to a model.

Legend of shapes: P posts, N comments of all posts together, L post tokens, T comment tokens, M target tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Batch:
    """One micro-batch: each post once, its comments flattened behind it.

    Every comment is `[CLS] c1 … ck [SEP]`; with teacher forcing its k+1 inputs predict its k+1 targets. `rows` picks the
    real (not padded) inputs out of the N·(T-1) padded ones, so that a model can work on the M real target tokens alone.
    A batch in which no example could be read holds one blank post with `weights` 0 and `n_targets` 0: under ZeRO-3 every
    rank must run the same forward passes, so an empty batch still has to be computable.
    """

    post_ids: Tensor  # (P, L) int64, [CLS] … [SEP], right-padded; L may be 0 (image only)
    post_lengths: Tensor  # (P,) int64
    images: Tensor | None  # (P, 3, H, W) uint8, RGB, already cropped; normalized on the device
    comment_ids: Tensor  # (N, T) int64, [CLS] … [SEP], right-padded
    owner: Tensor  # (N,) int64, ascending: the post that each comment belongs to
    rows: Tensor  # (M,) int64 into the flattened (N, T-1) inputs: the positions that have a target
    post_rows: Tensor  # (M,) int64 into a flattened (P, tokens_per_post): the same tokens gathered by post
    tokens_per_post: int  # the most target tokens that any one post has in this batch
    weights: Tensor  # (P,) float32: 1, or 0 for a blank or padding post whose losses do not count
    ids: list[str] = field(default_factory=list)  # (P,) example ids, for logs and for scoring
    indices: list[int] = field(default_factory=list)  # (P,) positions in the data set; -1 for a blank post
    n_targets: int = 0  # tokens that count (or posts: `answer_targets`), known without a device synchronization
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (id, reason) of records that could not be read
    answer_targets: Tensor | None = None  # (P, A) float32 soft targets of classified VQA: then a post is a target
    drawn: dict[str, Tensor] = field(default_factory=dict)  # what the model drew for this step (`model.prepare`)
    comment_weights: Tensor | None = None  # (N,) float32 factors of the comments' losses; None = 1 each

    @property
    def n_posts(self) -> int:
        return self.post_ids.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """A copy with every tensor on `device`; copies from pinned memory do not wait."""
        return self.map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by torch's DataLoader, so that copies to a GPU overlap with computing."""
        return self.map(lambda t: t.pin_memory())

    def map(self, change) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changed = {k: change(v) for k, v in tensors.items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **changed, drawn={k: change(v) for k, v in self.drawn.items()})
