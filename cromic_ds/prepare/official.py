"""A task's official files: which are there, and their records as a corpus.

The records are collected once in a table on disk, and then read from it one by one.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cromic_ds.data.disk_table import DiskTable, new_table
from cromic_ds.data.record import NO_ANSWERS
from cromic_ds.errors import UserError, nearest
from cromic_ds.files import read_json, write_json
from cromic_ds.metrics.vqa_answers import normalize_answer, soft_scores
from cromic_ds.prepare.corpus import Corpus, Post, Scanned
from cromic_ds.tasks import TASKS
from cromic_ds.tasks.reader import OfficialReader

READERS: dict[str, type[OfficialReader]] = {name: task.reader for name, task in TASKS.items() if task.reader}
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


def open_reader(task: str, root: str, wanted: list[str], answers: str) -> OfficialReader:
    """Return the reader of a task's files, with the wanted splits; if none is named, with all splits whose files are there.

    Raises UserError, which lists all missing files, those of the answer vocabulary included unless `answers` gives one.
    """
    reader = READERS[task](Path(root))
    missing = {split: [path for path in paths if not _is_there(path)] for split, paths in reader.needs().items()}
    for split in wanted:
        if split not in missing:
            raise UserError(f"{task} has no split {split!r}{nearest(split, missing)}; it has {', '.join(missing)}")
    chosen = list(dict.fromkeys(wanted)) or [split for split, paths in missing.items() if not paths]
    absent = [path for split in (chosen or missing) for path in missing[split]]
    unanswered = [] if answers else [path for path in reader.answer_files() if not _is_there(path)]
    if absent or unanswered:
        advice = "" if absent else ", or give an answer vocabulary, which comes from them, with --answers"
        raise UserError(
            f"{root}: {_in_words(reader, absent + unanswered)} missing; "
            f"put what the owners distribute there, under these names{advice}"
        )
    for split, paths in missing.items():
        if paths and split not in chosen and not wanted:
            print(f"without split {split}: {_in_words(reader, paths)} missing")
    reader.splits = chosen
    return reader


def _in_words(reader: OfficialReader, paths: list[Path]) -> str:
    names = [str(path.relative_to(reader.root)) + ("" if path.suffix else "/") for path in dict.fromkeys(paths)]
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _is_there(path: Path) -> bool:
    """Return whether there is such a file, or a folder that is not empty."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


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
