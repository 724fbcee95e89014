"""The micro-batches of each training step and of an evaluation.

The examples of a step are a function of (seed, step): step t takes the global positions [t·G, (t+1)·G) of the order, for
any number of ranks, workers and micro-batches. So there is no iterator state to save.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from cromic_ds.batch import Batch, BatchSplit
from cromic_ds.data.collate import LoadedExample, SkippedExample, SpecialTokens, collate
from cromic_ds.data.dataset import Dataset, Tokens, UnreadableRecord
from cromic_ds.data.images import training_image
from cromic_ds.data.limits import COMMENT_TOKENS, POST_TOKENS, cut_tokens
from cromic_ds.data.order import Order, example_seed
from cromic_ds.errors import UserError

MAX_AUTO_WORKERS = 8
PREFETCHED = 4  # micro-batches that each reader process keeps ready


@dataclass
class DataSettings:
    """The data that a run reads, and how much of it."""

    path: str = ""
    """Store folder, or folder in the published layout."""
    train_split: str = "train"
    """Split to train on."""
    eval_split: str = "val"
    """Split to evaluate on."""
    comments_per_post: int | None = 10
    """Comments of a post used in one training step, drawn again each epoch; null = all."""
    eval_comments_per_post: int | None = 50
    """Comments of a post scored in an evaluation, the first ones; null = all."""
    max_post_tokens: int = POST_TOKENS
    """Longest post in tokens, [CLS] and [SEP] included; longer ones are cut."""
    max_comment_tokens: int = COMMENT_TOKENS
    """Longest comment in tokens, [CLS] and [SEP] included; longer ones are cut."""
    workers: int | None = None
    """Reader processes per rank; 0 = read in the training process, null = 0 without a GPU, else up to 8."""
    max_skip_rate: float = 0.01
    """Share of an epoch's examples that may be unreadable before the run stops."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        for name in ("comments_per_post", "eval_comments_per_post"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise UserError(f"data.{name} is {count}: give a count, or null for all")
        for name in ("max_post_tokens", "max_comment_tokens"):
            if getattr(self, name) < 3:
                raise UserError(
                    f"data.{name} is {getattr(self, name)}: it must leave room for [CLS], a token and [SEP]"
                )
        if self.workers is not None and self.workers < 0:
            raise UserError(
                f"data.workers is {self.workers}: give 0 or more, or null for a number that suits the machine"
            )
        if not 0 <= self.max_skip_rate <= 1:
            raise UserError(f"data.max_skip_rate is {self.max_skip_rate}: give a share between 0 and 1")


def special_tokens(tokenizer_path: Path) -> SpecialTokens:
    """Return the ids of [PAD], [CLS] and [SEP] in a data set's tokenizer."""
    from cromic_ds.data.tokenizer import load_tokenizer

    tokenizer: Any = load_tokenizer(tokenizer_path)  # transformers declares its ids as more than int
    return SpecialTokens(tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)


@dataclass(frozen=True)
class ExampleReader:
    """Reads single examples of a data set. A bad example becomes a SkippedExample and never raises an exception."""

    dataset: Dataset
    max_post_tokens: int
    max_comment_tokens: int
    image_size: int  # side of the square crops in pixels; 0 = read no images
    n_answers: int = 0  # size of the answer vocabulary if answers are classified

    def read(self, index: int, most_comments: int | None, seed: int | None) -> LoadedExample | SkippedExample:
        """Return example `index` with at most `most_comments` (None = all): drawn by `seed`, or the first ones without it."""
        try:
            tokens = self.dataset.tokens(index)
            image = self._image(index, tokens) if self.image_size else None
        except UnreadableRecord as error:
            return SkippedExample(error.id, error.reason)
        return LoadedExample(
            id=tokens.id,
            index=index,
            post=cut_tokens(tokens.post, self.max_post_tokens),
            comments=[
                cut_tokens(comment, self.max_comment_tokens)
                for comment in self._choose(tokens.comments, most_comments, seed)
            ],
            image=image,
            answer_ids=tokens.answer_ids,
            answer_scores=tokens.answer_scores,
        )

    def _image(self, index: int, tokens: Tokens) -> np.ndarray:
        jpeg = self.dataset.image(index)
        if jpeg is None:
            raise UnreadableRecord(tokens.id, "has no image")
        try:
            return training_image(jpeg, self.image_size)
        except Exception as error:  # decoders raise many kinds of exceptions, and none of them may end a long run
            raise UnreadableRecord(tokens.id, f"image cannot be decoded: {error}") from error

    def batch(self, examples: list[LoadedExample | SkippedExample], special: SpecialTokens) -> Batch:
        """Collate examples."""
        return collate(examples, special=special, image_size=self.image_size, n_answers=self.n_answers)

    @staticmethod
    def _choose(comments: list[np.ndarray], most: int | None, seed: int | None) -> list[np.ndarray]:
        if most is None or len(comments) <= most:
            return comments
        if seed is None:
            return comments[:most]
        kept = np.random.default_rng(seed).choice(len(comments), size=most, replace=False)
        return [comments[i] for i in np.sort(kept)]


@dataclass(frozen=True)
class TrainMicroBatches(TorchDataset[Batch]):
    """Map-style data set of one rank: item m is its micro-batch m, counted over all steps of the run."""

    reader: ExampleReader
    special: SpecialTokens
    order: Order
    comments_per_post: int | None
    micro_batch: int
    rank: int
    world_size: int

    def __getitem__(self, m: int) -> Batch:
        epochs, indices = self.order.indices((m * self.world_size + self.rank) * self.micro_batch, self.micro_batch)
        examples = [
            self.reader.read(index, self.comments_per_post, example_seed(self.order.seed, epoch, index))
            for epoch, index in zip(epochs.tolist(), indices.tolist())
        ]
        return self.reader.batch(examples, self.special)


@dataclass(frozen=True)
class EvalMicroBatches(TorchDataset[Batch]):
    """Map-style data set of one rank: item m is its micro-batch m of the first `limit` examples, in their stored order."""

    reader: ExampleReader
    special: SpecialTokens
    limit: int
    comments_per_post: int | None
    micro_batch: int
    rank: int
    world_size: int

    def __getitem__(self, m: int) -> Batch:
        first = (m * self.world_size + self.rank) * self.micro_batch
        indices = range(first, min(first + self.micro_batch, self.limit))
        examples = [self.reader.read(index, self.comments_per_post, None) for index in indices]
        return self.reader.batch(examples, self.special)


def auto_workers() -> int:
    """Return 0 without a GPU, because the model keeps the processors busy; else this rank's share of the cores, at most 8."""
    if not torch.cuda.is_available():
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MAX_AUTO_WORKERS, cores // ranks_here))


def _ignore_signals(_worker: int) -> None:
    """Leave stop signals, which reach the whole process group, to the training process: its last step needs the readers."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)


def _load(micro_batches: TrainMicroBatches | EvalMicroBatches, items: range, settings: DataSettings) -> Iterator[Batch]:
    workers = auto_workers() if settings.workers is None else settings.workers
    return iter(
        DataLoader(
            micro_batches,
            batch_size=None,
            sampler=items,
            num_workers=workers,
            prefetch_factor=PREFETCHED if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_signals,
        )
    )


def _reader(dataset: Dataset, settings: DataSettings, image_size: int, n_answers: int) -> ExampleReader:
    if len(dataset) == 0:
        raise UserError(
            f"split {dataset.split!r} of {settings.path or 'the data'} is empty: name another split or prepare it again"
        )
    return ExampleReader(dataset, settings.max_post_tokens, settings.max_comment_tokens, image_size, n_answers)


def training_batches(
    dataset: Dataset,
    settings: DataSettings,
    split: BatchSplit,
    rank: int,
    *,
    image_size: int,
    seed: int,
    first_step: int,
    last_step: int,
    n_answers: int = 0,
) -> Iterator[list[Batch]]:
    """Yield this rank's micro-batches of each step in [first_step, last_step).

    Micro-batch a of rank r in step t holds the global positions t·G + (a·world size + r)·micro-batch + j of the order.

    Args:
        image_size: side of the crops in pixels; 0 if the model reads no images.
        n_answers: size of the answer vocabulary if answers are classified.

    Raises:
        UserError: at once, if the split of the data is empty.
    """
    train = TrainMicroBatches(
        reader=_reader(dataset, settings, image_size, n_answers),
        special=special_tokens(dataset.tokenizer_path),
        order=Order(len(dataset), seed),
        comments_per_post=settings.comments_per_post,
        micro_batch=split.micro_batch,
        rank=rank,
        world_size=split.world_size,
    )
    # Readers load one micro-batch at a time, so the memory that they hold does not grow with the accumulation.
    n = split.accumulation
    batches = _load(train, range(first_step * n, last_step * n), settings)
    return ([next(batches) for _ in range(n)] for _ in range(first_step, last_step))


def eval_batches(
    dataset: Dataset,
    settings: DataSettings,
    *,
    image_size: int,
    micro_batch: int,
    rank: int,
    world_size: int,
    limit: int | None = None,
    n_answers: int = 0,
    first_batch: int = 0,
) -> Iterator[Batch]:
    """Return the batches of this rank's share of the first `limit` examples (None = all), in their stored order.

    Every example is on exactly one rank. All ranks must run the same forward passes, so every rank gets the same number
    of batches; where there are too few examples, the last one is a `blank_batch`. A resumed job starts at `first_batch`.
    """
    reader = _reader(dataset, settings, image_size, n_answers)
    limit = min(limit or len(dataset), len(dataset))
    shard = EvalMicroBatches(
        reader=reader,
        special=special_tokens(dataset.tokenizer_path),
        limit=limit,
        comments_per_post=settings.eval_comments_per_post,
        micro_batch=micro_batch,
        rank=rank,
        world_size=world_size,
    )
    rounds = -(-limit // (micro_batch * world_size))
    return _load(shard, range(first_batch, rounds), settings)


@dataclass
class SkipCounter:
    """Counts the unreadable examples of an epoch over all ranks, and stops the run when there are too many.

    A resume needs nothing but its fields (`dataclasses.asdict`).
    """

    epoch: int = 0
    count: int = 0  # in this epoch, over all ranks
    named: list[tuple[str, str]] = field(default_factory=list)  # (id, reason) of the last few

    def add(
        self, epoch: int, count: int, named: Iterable[tuple[str, str]], *, epoch_size: int, max_rate: float
    ) -> None:
        """Count the examples that were skipped in a step; `named` lists those of this rank.

        Raises UserError once more than `max_rate` of the `epoch_size` examples were skipped in one epoch.
        """
        if epoch != self.epoch:
            self.epoch, self.count, self.named = epoch, 0, []
        self.count += count
        self.named = [*self.named, *named][-5:]
        if self.count > max_rate * epoch_size:
            raise UserError(
                f"{self.count} of {epoch_size} examples could not be read in epoch {epoch} (more than "
                f"{max_rate:.1%}, data.max_skip_rate); the last: "
                + "; ".join(f"{name!r} {reason}" for name, reason in self.named)
                + ". Check the data with `cromic-ds inspect` or prepare it again"
            )
