"""`Batch`: all that flows from the data to a model. `BatchSplit`: how the posts of a step are split over ranks and time.

Legend of shapes: P posts, N comments of all posts together, L post tokens, T comment tokens, M target tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cromic_ds.errors import UserError


@dataclass
class Batch:
    """One micro-batch: each post once, and the comments of all posts in one list.

    Every comment is `[CLS] c1 … ck [SEP]`; with teacher forcing its k+1 inputs predict its k+1 targets. `rows` selects the
    real (not padded) inputs from the N·(T-1) padded ones, so that a model can work on the M real target tokens alone.
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
    ids: list[str] = field(default_factory=list)  # (P,) example ids, for logs and scoring
    indices: list[int] = field(default_factory=list)  # (P,) positions in the data set; -1 for a blank post
    n_targets: int = 0  # targets that count, known without synchronizing with the device
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (id, reason) of records that could not be read
    answer_targets: Tensor | None = None  # (P, A) float32 soft targets of classified VQA; then each post is one target
    drawn: dict[str, Tensor] = field(default_factory=dict)  # what the model drew for this step (`model.draw`)
    comment_weights: Tensor | None = None  # (N,) float32 factors of the comments' losses; None = 1 each

    @property
    def n_posts(self) -> int:
        return self.post_ids.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """Return a copy with every tensor on `device`. Copies from pinned memory are asynchronous."""
        return self.map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return a copy in pinned memory, so that copies to a GPU overlap with computing. Called by torch's DataLoader."""
        return self.map(lambda t: t.pin_memory())

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return a copy with `change` applied to every tensor."""
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changed = {k: change(v) for k, v in tensors.items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **changed, drawn={k: change(v) for k, v in self.drawn.items()})


@dataclass(frozen=True)
class BatchSplit:
    """How the posts of an optimizer step are split: global batch = micro-batch × accumulation × world size.

    Raises UserError if the sizes do not divide; the message names the nearest world sizes, micro-batches and global batches.
    """

    global_batch: int  # posts per optimizer step, over all ranks and accumulation steps
    micro_batch: int  # posts per rank in one forward pass
    world_size: int = 1

    @classmethod
    def derive(
        cls, global_batch: int, world_size: int = 1, micro_batch: int | None = None, largest: int = 64
    ) -> BatchSplit:
        """Return the split with the given micro-batch, or with the largest one up to `largest` that divides."""
        if micro_batch is None:
            per_rank = global_batch // world_size if global_batch % world_size == 0 else 1
            micro_batch = max((m for m in range(1, min(largest, per_rank) + 1) if per_rank % m == 0), default=1)
        return cls(global_batch, micro_batch, world_size)

    def __post_init__(self) -> None:
        batch, micro, world = self.global_batch, self.micro_batch, self.world_size
        whole = micro > 0 and batch % micro == 0
        ranks = _either(_nearest_divisors(batch // micro if whole else batch, world)) if batch > 0 else ""
        if batch < 1 or batch % world:
            other = f"start {ranks}, or in a new run " if ranks else ""
            near = _either([n for n in (batch // world * world, (batch // world + 1) * world) if n > 0])
            raise UserError(
                f"global batch {batch} does not divide over {world} ranks: {other}use a global batch of {near}"
            )
        per_rank = batch // world
        if micro < 1 or per_rank % micro:
            other = f"start {ranks} ranks, " if whole and ranks else ""
            raise UserError(
                f"global batch {batch} over {world} ranks is {per_rank} posts each, which micro-batch {micro} does not divide: "
                f"use micro-batch {_either(_nearest_divisors(per_rank, micro))}, {other}or another global batch"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches of each rank in an optimizer step."""
        return self.global_batch // (self.micro_batch * self.world_size)

    def __str__(self) -> str:
        ranks = f"{self.world_size} rank" + "s" * (self.world_size != 1)
        return f"global batch {self.global_batch} = micro-batch {self.micro_batch} × accumulation {self.accumulation} × {ranks}"


def _nearest_divisors(n: int, wanted: int) -> list[int]:
    """Return the largest divisor of `n` below `wanted` and the smallest above it, where they exist."""
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    return [*[d for d in divisors if d < wanted][-1:], *[d for d in divisors if d > wanted][:1]]


def _either(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))
