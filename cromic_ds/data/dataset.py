"""What every source of training data looks like, and the one function that opens whichever a path holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from cromic_ds.errors import UserError


@dataclass(slots=True)
class Tokens:
    """Token ids of one example, each sequence `[CLS] … [SEP]`, unpadded."""

    id: str
    post: np.ndarray  # (L,) int32; empty for tasks without text
    comments: list[np.ndarray]  # each (T,) int32; empty where nothing is known (test splits)


@dataclass(slots=True)
class Texts:
    """The same example as people read it: for scoring, tables and pictures."""

    id: str
    post: str
    comments: list[str]
    extras: dict = field(default_factory=dict)  # whatever was stored with the record, for example its grounded answer


class UnreadableRecord(Exception):
    """A record that is damaged or incomplete. Training skips it, counts it and names it."""

    def __init__(self, id: str, reason: str):
        super().__init__(id, reason)  # both as arguments, so that the exception survives pickling between processes
        self.id = id
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


@runtime_checkable
class Dataset(Protocol):
    """Random access to the examples of one split. Picklable; opens its files lazily in each process."""

    split: str
    fingerprint: str  # changes when the content does; kept in checkpoints
    tokenizer_path: Path  # what `load_tokenizer` takes

    def __len__(self) -> int: ...

    def tokens(self, index: int) -> Tokens:
        """Raises UnreadableRecord."""
        ...

    def image(self, index: int) -> bytes | None:
        """The encoded image, None where the record has none. Raises UnreadableRecord."""
        ...

    def texts(self, index: int) -> Texts:
        """Raises UnreadableRecord."""
        ...


def open_dataset(path: str | Path, split: str = "train") -> Dataset:
    """A store, or a folder (or one `.pt` file) in the published layout: whichever `path` holds.

    Raises UserError when it is neither, or has no such split.
    """
    from cromic_ds.data.published import PublishedDataset, holds_published
    from cromic_ds.data.store import StoreDataset, is_store

    path = Path(path)
    if is_store(path):
        return StoreDataset(path, split)
    if holds_published(path):
        return PublishedDataset(path, split)
    raise _unknown(path)


def available_splits(path: str | Path) -> list[str]:
    """The split names of `path`. A lone published file, which serves as any split, has its own name."""
    from cromic_ds.data.published import holds_published, published_names
    from cromic_ds.data.store import is_store, read_meta

    if is_store(path):
        return list(read_meta(path)["splits"])
    if holds_published(path):
        return published_names(path)
    raise _unknown(Path(path))


def _unknown(path: Path) -> UserError:
    if not path.exists():
        return UserError(f"{path}: no such data set; make one with `cromic-ds prepare` or `cromic-ds sample`")
    if path.is_dir() and (path.parent / f"{path.name}.partial").is_dir():
        return UserError(f"{path}: its preparation is not finished; run the same `cromic-ds prepare` again")
    return UserError(
        f"{path}: neither a store (no store.json) nor the published layout (no <name>.pt beside <name>_image_lmdb); "
        "make a store with `cromic-ds prepare`"
    )
