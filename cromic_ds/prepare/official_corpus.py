"""A task's official files as a corpus: gathered once into a database on disk, then read from it record by record."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from cromic_ds.data.record import NO_ANSWERS
from cromic_ds.metrics.vqa_answers import normalize_answer, soft_scores
from cromic_ds.prepare.answer_vocabulary import vocabulary
from cromic_ds.prepare.corpus import Post, Scanned
from cromic_ds.tasks.reader import Entry, Reader

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
BEGIN;
CREATE TABLE files (number INTEGER PRIMARY KEY, name TEXT, split INTEGER);
CREATE TABLE records (file INTEGER, entry INTEGER, id TEXT, image_id TEXT, reason TEXT, body TEXT);
"""
# Images in the order in which the files first name them, all records of an image together.
_BY_IMAGE = """
SELECT file, entry, number, id, reason FROM (
    SELECT rowid AS number, *, min(rowid) OVER (PARTITION BY file, image_id) AS first FROM records
) ORDER BY first, number
"""


class OfficialCorpus:
    """The reader's splits. `answers` and `min_answer_count` as the settings have them."""

    unit = "records"
    shares_images = True

    def __init__(self, reader: Reader, answers: str, min_answer_count: int, work: Path):
        self.splits, self.max_comment_tokens = reader.splits, reader.max_comment_tokens
        self.answers = vocabulary(reader, answers, min_answer_count, work) if reader.classified else None
        self._labels = {answer: label for label, answer in enumerate(self.answers or ())}
        self._database = work / "records.db"
        self._connection: sqlite3.Connection | None = None
        if not self._database.exists():
            gather(reader, self._database)
        files = self._db.execute("SELECT name, split FROM files ORDER BY number").fetchall()
        self.files, self._split_of = [name for name, _ in files], [split for _, split in files]
        [self.size] = self._db.execute("SELECT count(*) FROM records").fetchone()
        self._images = [reader.images(split, work) for split in self.splits]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_connection": None}

    def scan(self) -> Iterator[Scanned]:
        for row in self._db.execute(_BY_IMAGE):
            yield Scanned(*row)

    def progress(self, scanned: Scanned) -> int:
        return scanned.position  # nearly: an image's later records lie further on

    def key(self, scanned: Scanned) -> bytes:
        """Splits may share ids: test-dev of VQA is a part of its test."""
        return f"{self._split_of[scanned.file]} {scanned.id}".encode()

    def read(self, file: int, position: int) -> Post:
        [body] = self._db.execute("SELECT body FROM records WHERE rowid = ?", (position,)).fetchone()
        post = Post(**json.loads(body))
        if self._labels and "answers" in post.extras:
            post.answers = self._classified(post.extras["answers"])
        return post

    def image(self, file: int, post: Post) -> bytes | None:
        return self._images[self._split_of[file]].get(post.image)

    def split(self, scanned: Scanned, val_fraction: float) -> int:
        return self._split_of[scanned.file]

    def _classified(self, given: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Those of the ten answers that are in the vocabulary, as labels with their soft scores."""
        scores = soft_scores(Counter(map(normalize_answer, given)))
        known = sorted((self._labels[answer], score) for answer, score in scores.items() if answer in self._labels)
        if not known:
            return NO_ANSWERS
        labels, values = zip(*known)
        return np.array(labels, np.int32), np.array(values, np.float32)

    @property
    def _db(self) -> sqlite3.Connection:
        """Opened at its first use in each process."""
        if self._connection is None:
            self._connection = sqlite3.connect(f"{self._database.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        return self._connection


def gather(reader: Reader, database: Path) -> None:
    """All entries of the reader's splits to a database, which gets its name when it is complete."""
    work = database.parent
    aside = database.with_suffix(".tmp")
    aside.unlink(missing_ok=True)
    numbers: dict[str, int] = {}
    with closing(sqlite3.connect(aside, isolation_level=None)) as db:
        db.executescript(_TABLES)

        def rows(number: int, split: str) -> Iterator[tuple]:
            for entry in reader.entries(split, work):
                if entry.file not in numbers:
                    numbers[entry.file] = len(numbers)
                    db.execute("INSERT INTO files VALUES (?, ?, ?)", (numbers[entry.file], entry.file, number))
                yield numbers[entry.file], entry.number, entry.id, entry.image_id, entry.reason, _body(entry)

        for number, split in enumerate(reader.splits):
            db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", rows(number, split))
        db.execute("COMMIT")
    aside.rename(database)


def _body(entry: Entry) -> str:
    if entry.reason:
        return ""
    fields = ("id", "post", "comments", "image_id", "image", "extras")
    return json.dumps({name: getattr(entry, name) for name in fields}, ensure_ascii=False)
