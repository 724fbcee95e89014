"""A task's official files as a corpus: collected once in a table on disk, then read from it record by record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cromic_ds.data.disk_table import DiskTable, new_table
from cromic_ds.data.record import NO_ANSWERS
from cromic_ds.files import read_json, write_json
from cromic_ds.metrics.vqa_answers import normalize_answer, soft_scores
from cromic_ds.prepare.corpus import Corpus, Post, Scanned
from cromic_ds.tasks.reader import OfficialReader

RECORDS_FILE = "records.db"
FILES_FILE = "official_files.json"  # [name, split] of each, in the order of their numbers
_COLUMNS = "number INTEGER PRIMARY KEY, file INTEGER, entry INTEGER, id TEXT, image_id TEXT, reason TEXT, body TEXT"
_BODY = ("id", "post", "comments", "image_id", "image", "extras")  # fields of an entry and of a `Post`
# Images in the order in which the files first name them, all records of an image together.
_BY_IMAGE = """
SELECT file, entry, number, id, reason FROM (
    SELECT *, min(number) OVER (PARTITION BY file, image_id) AS first FROM rows
) ORDER BY first, number
"""


class OfficialCorpus(Corpus):
    """The wanted splits of a reader, with the vocabulary of its answers if they are classified."""

    unit = "records"
    shares_images = True

    def __init__(self, reader: OfficialReader, answers: list[str] | None, work: Path):
        self.splits, self.answers = reader.splits, answers
        self._labels = {answer: label for label, answer in enumerate(answers or ())}
        self._records = DiskTable(work / RECORDS_FILE)
        if not self._records.file.exists():
            collect_records(reader, work)
        files = read_json(work / FILES_FILE)
        self.files, self._split_of = [name for name, _ in files], [split for _, split in files]
        self.size = self._records.execute("SELECT max(number) FROM rows").fetchone()[0] or 0
        self._images = [reader.images(split, work) for split in self.splits]

    def scan(self) -> Iterator[Scanned]:
        for row in self._records.execute(_BY_IMAGE):
            yield Scanned(*row)

    def progress(self, scanned: Scanned) -> int:
        return scanned.position  # approximately: the other records of an image come later in the table

    def key(self, scanned: Scanned) -> bytes:
        """Return the split and the id. Splits may share ids: test-dev of VQA is a part of its test."""
        return f"{self._split_of[scanned.file]} {scanned.id}".encode()

    def read(self, file: int, position: int) -> Post:
        [body] = self._records.execute("SELECT body FROM rows WHERE number = ?", position).fetchone()
        post = Post(**json.loads(body))
        if self._labels and "answers" in post.extras:
            post.answers = self._classified(post.extras["answers"])
        return post

    def image(self, file: int, post: Post) -> bytes | None:
        return self._images[self._split_of[file]].get(post.image)

    def split(self, scanned: Scanned, val_fraction: float) -> int:
        return self._split_of[scanned.file]

    def _classified(self, given: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return those of the ten answers that are in the vocabulary, as labels with their soft scores."""
        scores = soft_scores(Counter(map(normalize_answer, given)))
        known = sorted((self._labels[answer], score) for answer, score in scores.items() if answer in self._labels)
        if not known:
            return NO_ANSWERS
        labels, values = zip(*known)
        return np.array(labels, np.int32), np.array(values, np.float32)


def collect_records(reader: OfficialReader, work: Path) -> None:
    """Write all entries of the reader's splits to RECORDS_FILE, which is there only once it is complete."""
    files: dict[str, tuple[int, int]] = {}  # by name: number and split
    rows = 0
    with new_table(work / RECORDS_FILE, _COLUMNS) as records:
        for split, name in enumerate(reader.splits):
            for entry in reader.entries(name, work):
                rows += 1
                file, _ = files.setdefault(entry.file, (len(files), split))
                body = {field: getattr(entry, field) for field in _BODY}
                text = "" if entry.reason else json.dumps(body, ensure_ascii=False)
                records.insert(rows, file, entry.number, entry.id, entry.image_id, entry.reason, text)
        write_json(work / FILES_FILE, [[name, split] for name, (_, split) in files.items()])
