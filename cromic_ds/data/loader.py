"""The micro-batches of each training step and of an evaluation.

The examples of a step are a function of (seed, step): step t takes the global positions [t·G, (t+1)·G) of the order, for
any number of ranks, workers and micro-batches. So there is no iterator state to save.
"""

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
from cromic_ds.data.collate import LoadedExample, SpecialTokens, collate
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
            if (longest := getattr(self, name)) < 3:
                raise UserError(f"data.{name} is {longest}: it must leave room for [CLS], a token and [SEP]")
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


@dataclass
class _MicroBatches(TorchDataset[Batch]):
    """Map-style data set of one rank: item m is its micro-batch m, counted over all steps of the run or of the evaluation.

    A bad example is skipped and named in the batch, and never raises an exception. Raises UserError if the split is empty.
    """

    dataset: Dataset
    settings: DataSettings
    image_size: int  # side of the square crops in pixels; 0 = read no images
    n_answers: int  # size of the answer vocabulary if answers are classified
    micro_batch: int
    rank: int
    world_size: int
    limit: int = 0  # examples of an evaluation, in their stored order
    order: Order | None = None  # of training, which has no limit

    def __post_init__(self) -> None:
        if len(self.dataset) == 0:
            of = f"split {self.dataset.split!r} of {self.settings.path or 'the data'}"
            raise UserError(f"{of} is empty: name another split or prepare it again")
        self.special = special_tokens(self.dataset.tokenizer_path)

    def __getitem__(self, m: int) -> Batch:
        first = (m * self.world_size + self.rank) * self.micro_batch
        if self.order:
            seed, most = self.order.seed, self.settings.comments_per_post
            epochs, indices = (array.tolist() for array in self.order.indices(first, self.micro_batch))
            examples = [self._read(i, most, example_seed(seed, epoch, i)) for epoch, i in zip(epochs, indices)]
        else:
            most = self.settings.eval_comments_per_post
            examples = [self._read(i, most, None) for i in range(first, min(first + self.micro_batch, self.limit))]
        return collate(examples, special=self.special, image_size=self.image_size, n_answers=self.n_answers)

    def _read(self, index: int, most: int | None, seed: int | None) -> LoadedExample | UnreadableRecord:
        """Return an example with at most `most` comments (None = all): drawn by `seed`, or the first ones without it."""
        try:
            tokens = self.dataset.tokens(index)
            image = self._image(index, tokens) if self.image_size else None
        except UnreadableRecord as error:
            return UnreadableRecord(error.id, error.reason)  # without the traceback, which holds the other examples
        n = len(tokens.comments)
        chosen = range(n)[:most]
        if seed is not None and len(chosen) < n:
            chosen = np.sort(np.random.default_rng(seed).choice(n, size=len(chosen), replace=False))
        return LoadedExample(
            id=tokens.id,
            index=index,
            post=cut_tokens(tokens.post, self.settings.max_post_tokens),
            comments=[cut_tokens(tokens.comments[i], self.settings.max_comment_tokens) for i in chosen],
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

    def load(self, items: range) -> Iterator[Batch]:
        workers = auto_workers() if self.settings.workers is None else self.settings.workers
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=items,
            num_workers=workers,
            prefetch_factor=PREFETCHED if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_signals,
        )
        return iter(loader)


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
    `image_size` is the side of the crops in pixels, 0 for no images; `n_answers` is the size of the answer vocabulary. Raises
    UserError, at once, if the split of the data is empty.
    """
    train = _MicroBatches(
        dataset,
        settings,
        image_size=image_size,
        n_answers=n_answers,
        micro_batch=split.micro_batch,
        rank=rank,
        world_size=split.world_size,
        order=Order(len(dataset), seed),
    )
    # Readers load one micro-batch at a time, so the memory that they hold does not grow with the accumulation.
    n = split.accumulation
    batches = train.load(range(first_step * n, last_step * n))
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
    Sizes and errors are those of `training_batches`.
    """
    limit = min(limit or len(dataset), len(dataset))
    shard = _MicroBatches(
        dataset,
        settings,
        image_size=image_size,
        n_answers=n_answers,
        micro_batch=micro_batch,
        rank=rank,
        world_size=world_size,
        limit=limit,
    )
    rounds = -(-limit // (micro_batch * world_size))
    return shard.load(range(first_batch, rounds))


@dataclass
class SkipCounter:
    """Counts the unreadable examples of an epoch over all ranks, and stops the run above a share. A resume needs its fields."""

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
