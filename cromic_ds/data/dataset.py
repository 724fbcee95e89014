"""What every source of training data looks like."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(slots=True)
class Tokens:
    """Token ids of one example, each sequence `[CLS] … [SEP]`, unpadded."""

    id: str
    post: np.ndarray  # (L,) int32; empty for tasks without text
    comments: list[np.ndarray]  # each (T,) int32; empty where nothing is known (test splits)
    # Classified answers: ids into the data set's answer vocabulary and their soft scores, (K,) int32 and (K,) float32;
    # empty where nothing is known, None where the data set has no answer vocabulary.
    answer_ids: np.ndarray | None = None
    answer_scores: np.ndarray | None = None


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
    task: str | None  # the downstream task it was prepared for; None for posts with comments
    answers: list[str] | None  # the answer vocabulary of classified question answering
    answers_fingerprint: str | None

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
