"""Input of preparation behind one interface: raw text files, the published layout, or a task's official files
(official_corpus.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np

from cromic_ds.data.dataset import UnreadableRecord
from cromic_ds.data.published_layout import PublishedDataset, holds_published, published_names
from cromic_ds.data.record import NO_ANSWERS
from cromic_ds.data.sources import ImageSource
from cromic_ds.errors import UserError
from cromic_ds.files import read_lines
from cromic_ds.prepare.raw_lines import BadLine, parse_line


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


class Corpus(Protocol):
    """Picklable; opens its files lazily in each process."""

    files: list[str]  # as rejects.jsonl names them
    splits: list[str]
    size: int  # in the unit of `progress`
    unit: str  # bytes, posts or records
    answers: list[str] | None  # the vocabulary of classified answers
    shares_images: bool  # several posts may have one image; if so, they follow each other

    @property
    def tokenizer_path(self) -> Path | None:
        """The input's own tokenizer."""
        ...

    def scan(self) -> Iterator[Scanned]:
        """Yield all lines."""
        ...

    def progress(self, scanned: Scanned) -> int:
        """Return how much of `size` has been read at a line."""
        ...

    def key(self, scanned: Scanned) -> bytes:
        """Return the key that must be unique among the posts."""
        ...

    def read(self, file: int, position: int) -> Post:
        """Return the post of a usable line."""
        ...

    def image(self, file: int, post: Post) -> bytes | None:
        """Return the image of a post, None if there is none. Raises BadImage."""
        ...

    def split(self, scanned: Scanned, val_fraction: float) -> int:
        """Return an index into `splits`, which depends on the id alone unless the files are splits already."""
        ...


class TextCorpus:
    """Files of raw lines, and images from one source."""

    unit = "bytes"
    answers: list[str] | None = None
    shares_images = False
    tokenizer_path: Path | None = None

    def __init__(self, files: list[str], images: ImageSource):
        for file in files:
            if not Path(file).is_file():
                raise UserError(f"{file}: no such text file")
            if files.count(file) > 1:
                raise UserError(f"{file}: given more than once")
        self.files, self.images = files, images
        self.splits = ["train", "val"]
        sizes = [Path(file).stat().st_size for file in files]
        self.size = sum(sizes)
        self._starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self._handles: dict[int, IO[bytes]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}

    def scan(self) -> Iterator[Scanned]:
        for file, path in enumerate(self.files):
            for number, offset, line in read_lines(path):
                try:
                    yield Scanned(file, number, offset, parse_line(line).id, "")
                except BadLine as error:
                    yield Scanned(file, number, offset, _first_field(line), str(error))

    def progress(self, scanned: Scanned) -> int:
        return self._starts[scanned.file] + scanned.position

    def key(self, scanned: Scanned) -> bytes:
        return scanned.id.encode()

    def read(self, file: int, position: int) -> Post:
        if file not in self._handles:
            self._handles[file] = Path(self.files[file]).open("rb")  # noqa: SIM115 - stays open for the next line
        self._handles[file].seek(position)
        raw = parse_line(self._handles[file].readline())
        return Post(raw.id, raw.post, raw.comments, image_id=raw.id, image=raw.exact_id)

    def image(self, file: int, post: Post) -> bytes | None:
        return self.images.get(post.image)

    def split(self, scanned: Scanned, val_fraction: float) -> int:
        return int(hash_fraction(scanned.id) < val_fraction)


class PublishedCorpus:
    """All files of a published folder. Token ids are kept as they are while `keep_tokens` is set."""

    unit = "posts"
    answers: list[str] | None = None
    shares_images = False

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

    def key(self, scanned: Scanned) -> bytes:
        return scanned.id.encode()

    def read(self, file: int, position: int) -> Post:
        dataset = self._datasets[file]
        texts, tokens = dataset.texts(position), dataset.tokens(position)
        kept = (tokens.post, tokens.comments) if self.keep_tokens else None
        return Post(texts.id, texts.post, texts.comments, image_id=texts.id, image=dataset.id(position), tokens=kept)

    def image(self, file: int, post: Post) -> bytes | None:
        return self._datasets[file].images.get(post.image)

    def split(self, scanned: Scanned, val_fraction: float) -> int:
        if len(self.files) > 1:  # they are splits already
            return scanned.file
        return int(hash_fraction(scanned.id) < val_fraction)


def hash_fraction(key: str) -> float:
    """Return a number in [0, 1) that depends on `key` alone: the same on every machine and in every order."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, person=b"split").digest(), "big") / 2**64


def _first_field(line: bytes) -> str:
    return line[:1000].partition(b"#EOS#")[0].decode(errors="replace").strip()[:100]
