"""Input of preparation behind one interface: the published layout, raw lines (raw_lines.py) or official files (official.py)."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cromic_ds.data.dataset import UnreadableRecord
from cromic_ds.data.published_layout import PublishedDataset, holds_published, published_names
from cromic_ds.data.record import NO_ANSWERS
from cromic_ds.errors import UserError


class Scanned(NamedTuple):
    """One line of a corpus, as the first pass reads it."""

    file: int  # index into `files`
    line: int  # from 1
    position: int  # an argument for `read`
    id: str  # empty if the line has none
    reason: str  # why it cannot be used; empty for a good line


@dataclass(slots=True)
class Post:
    """One usable line, as the second pass reads it."""

    id: str
    post: str  # empty for tasks without text
    comments: list[str]  # empty where none are known (test splits)
    image_id: str  # the image's key in the store
    image: str  # the image's id in its source
    tokens: tuple[np.ndarray, list[np.ndarray]] | None = None  # post and comments, if they are tokenized already
    extras: dict[str, Any] = field(default_factory=dict)
    answers: tuple[np.ndarray, np.ndarray] = NO_ANSWERS


class Corpus(ABC):
    """The input of a preparation. Picklable; opens its files lazily in each process."""

    files: list[str]  # as rejects.jsonl names them
    splits: list[str]
    size: int  # in the unit of `progress`
    unit: str  # bytes, posts or records
    answers: list[str] | None = None  # the vocabulary of classified answers
    shares_images: bool = False  # several posts may have one image; if so, they follow each other
    tokenizer_path: Path | None = None  # the input's own tokenizer

    @abstractmethod
    def scan(self) -> Iterator[Scanned]:
        """Yield all lines."""

    @abstractmethod
    def progress(self, scanned: Scanned) -> int:
        """Return how much of `size` has been read at a line."""

    def key(self, scanned: Scanned) -> bytes:
        """Return the key that must be unique among the posts."""
        return scanned.id.encode()

    @abstractmethod
    def read(self, file: int, position: int) -> Post:
        """Return the post of a usable line."""

    @abstractmethod
    def image(self, file: int, post: Post) -> bytes | None:
        """Return the image of a post, None if there is none. Raises BadImage."""

    def split(self, scanned: Scanned, val_fraction: float) -> int:
        """Return an index into `splits`, which depends on the id alone unless the files are splits already."""
        return int(hash_fraction(scanned.id) < val_fraction)


class PublishedCorpus(Corpus):
    """All files of a published folder. Token ids are kept as they are while `keep_tokens` is set."""

    unit = "posts"

    def __init__(self, folder: str):
        if not holds_published(folder):
            raise UserError(f"{folder}: not in the published layout, no <name>.pt beside a <name>_image_lmdb folder")
        self._datasets = [PublishedDataset(folder, name) for name in published_names(folder)]
        self.keep_tokens = True
        self.files = [str(dataset.file) for dataset in self._datasets]
        self.splits = [dataset.split for dataset in self._datasets] if len(self.files) > 1 else ["train", "val"]
        self.size = sum(map(len, self._datasets))
        self.tokenizer_path = self._datasets[0].tokenizer_path

    def scan(self) -> Iterator[Scanned]:
        for file, dataset in enumerate(self._datasets):
            for index in range(len(dataset)):
                try:
                    yield Scanned(file, index + 1, index, dataset.tokens(index).id, "")
                except UnreadableRecord as error:
                    yield Scanned(file, index + 1, index, error.id, error.reason)

    def progress(self, scanned: Scanned) -> int:
        return sum(map(len, self._datasets[: scanned.file])) + scanned.line

    def read(self, file: int, position: int) -> Post:
        dataset = self._datasets[file]
        texts, tokens = dataset.texts(position), dataset.tokens(position)
        kept = (tokens.post, tokens.comments) if self.keep_tokens else None
        return Post(texts.id, texts.post, texts.comments, image_id=texts.id, image=dataset.id(position), tokens=kept)

    def image(self, file: int, post: Post) -> bytes | None:
        return self._datasets[file].images.get(post.image)

    def split(self, scanned: Scanned, val_fraction: float) -> int:
        return scanned.file if len(self.files) > 1 else super().split(scanned, val_fraction)


def hash_fraction(key: str) -> float:
    """Return a number in [0, 1) that depends on `key` alone: the same on every machine and in every order."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, person=b"split").digest(), "big") / 2**64
