"""The interface of every source of training data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np


@dataclass(slots=True)
class Tokens:
    """Token ids of one example, each sequence `[CLS] … [SEP]`, unpadded."""

    id: str
    post: np.ndarray  # (L,) int32; empty for tasks without text
    comments: list[np.ndarray]  # each (T,) int32; empty where none are known (test splits)
    # Classified answers: ids into the data set's answer vocabulary and their soft scores, (K,) int32 and (K,) float32;
    # empty where none are known, None where the data set has no answer vocabulary.
    answer_ids: np.ndarray | None = None
    answer_scores: np.ndarray | None = None


@dataclass(slots=True)
class Texts:
    """The same example as text, for scores, tables and pictures."""

    id: str
    post: str
    comments: list[str]
    extras: dict[str, Any] = field(default_factory=dict)  # further fields of the record, such as its grounded answer


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
    fingerprint: str  # changes with the content; kept in checkpoints
    tokenizer_path: Path  # an argument for `load_tokenizer`
    task: str | None  # the downstream task it was prepared for; None for posts with comments
    answers_fingerprint: str | None

    @property
    def answers(self) -> list[str] | None:
        """The answer vocabulary of classified question answering."""
        ...

    def __len__(self) -> int: ...

    def tokens(self, index: int) -> Tokens:
        """Return the token ids of an example. Raises UnreadableRecord."""
        ...

    def image(self, index: int) -> bytes | None:
        """Return the encoded image, None where the record has none. Raises UnreadableRecord."""
        ...

    def texts(self, index: int) -> Texts:
        """Return the texts of an example. Raises UnreadableRecord."""
        ...
