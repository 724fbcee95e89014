"""What preparation reads posts from: raw text files, or files in the published layout. Both look the same to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import numpy as np

from cromic_ds.data.dataset import UnreadableRecord
from cromic_ds.data.hash_index import hash_fraction
from cromic_ds.data.published import PublishedDataset, holds_published, published_names
from cromic_ds.data.sources import ImageSource
from cromic_ds.data.text import BadLine, RawPost, parse_line, read_lines
from cromic_ds.errors import UserError


class Scanned(NamedTuple):
    """One line of a corpus as the first pass sees it."""

    file: int  # index into `files`
    line: int  # from 1
    position: int  # what `read` takes
    id: str  # empty where the line does not even have one
    reason: str  # why it cannot be used; empty for a good line


@dataclass(slots=True)
class Post:
    """One usable line as the second pass reads it."""

    raw: RawPost
    tokens: tuple[np.ndarray, list[np.ndarray]] | None = None  # post and comments, where they need not be tokenised


class Corpus(Protocol):
    """Picklable; opens its files lazily in each process."""

    files: list[str]  # as rejects.jsonl names them
    splits: list[str]
    size: int  # in bytes of text or in posts, whichever `progress` counts
    unit: str  # of both

    def scan(self) -> Iterator[Scanned]: ...

    def progress(self, scanned: Scanned) -> int: ...

    def read(self, file: int, position: int) -> Post: ...

    def image(self, file: int, post: RawPost) -> bytes | None: ...

    def split(self, scanned: Scanned, val_fraction: float) -> int:
        """Index into `splits`; depends on the id alone where a file does not decide it."""
        ...


class TextCorpus:
    """Raw lines, and images from one source."""

    def __init__(self, files: list[str], images: ImageSource):
        for file in files:
            if not Path(file).is_file():
                raise UserError(f"{file}: no such text file")
            if files.count(file) > 1:
                raise UserError(f"{file}: given more than once")
        self.files, self.images = files, images
        self.splits, self.unit = ["train", "val"], "bytes"
        sizes = [Path(file).stat().st_size for file in files]
        self.size = sum(sizes)
        self._starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self._handles: dict[int, IO[bytes]] = {}

    def __getstate__(self) -> dict:
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

    def read(self, file: int, position: int) -> Post:
        if file not in self._handles:
            self._handles[file] = Path(self.files[file]).open("rb")  # noqa: SIM115 - stays open for the next line
        self._handles[file].seek(position)
        return Post(parse_line(self._handles[file].readline()))

    def image(self, file: int, post: RawPost) -> bytes | None:
        return self.images.get(post.exact_id)

    def split(self, scanned: Scanned, val_fraction: float) -> int:
        return int(hash_fraction(scanned.id) < val_fraction)


class PublishedCorpus:
    """Every file of a published folder. Token ids are kept as they are, unless another tokenizer is wanted."""

    def __init__(self, folder: str):
        if not holds_published(folder):
            raise UserError(f"{folder}: not in the published layout, no <name>.pt beside a <name>_image_lmdb folder")
        self._datasets = [PublishedDataset(folder, name) for name in published_names(folder)]
        self.keep_tokens = True
        self.files = [str(dataset.file) for dataset in self._datasets]
        self.splits = [dataset.split for dataset in self._datasets] if len(self.files) > 1 else ["train", "val"]
        self.size, self.unit = sum(map(len, self._datasets)), "posts"
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
        raw = RawPost(texts.id, dataset.id(position), texts.post, texts.comments)
        return Post(raw, (tokens.post, tokens.comments) if self.keep_tokens else None)

    def image(self, file: int, post: RawPost) -> bytes | None:
        return self._datasets[file].images.get(post.exact_id)

    def split(self, scanned: Scanned, val_fraction: float) -> int:
        if len(self.files) > 1:  # they are splits already
            return scanned.file
        return int(hash_fraction(scanned.id) < val_fraction)


def _first_field(line: bytes) -> str:
    return line[:1000].partition(b"#EOS#")[0].decode(errors="replace").strip()[:100]
