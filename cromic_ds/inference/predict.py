"""A model's predictions for a split, in the file that the task's evaluation server takes; can be stopped and continued.

Texts are kept batch by batch in OUT.partial.jsonl. Its first line says what they are of, and only a run that would write
the same line goes on with it. At the end they become OUT, which is read back and checked before it gets its name.
"""

from __future__ import annotations

import fcntl
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from cromic_ds.data.dataset import Dataset, Texts, UnreadableRecord
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.errors import UserError
from cromic_ds.inference.job import Answered, InferenceSettings, Job, load, output_file
from cromic_ds.tasks.predictions import check_ids


@dataclass
class PredictSettings(InferenceSettings):
    """A model, the records that it answers, how texts are generated, and the file to write."""

    split: str = "test"
    """Split to predict."""
    out: str = ""
    """File to write. The same command with the same file goes on where it stopped."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        super().check()
        if not self.out:
            raise UserError("--out is missing: name the file to write")


def predict(settings: PredictSettings) -> None:
    """`cromic-ds predict`.

    Raises:
        UserError: model and data do not fit together, or the file was begun with other ones.
    """
    settings.check()
    dataset = open_dataset(settings.data, settings.split)
    out = output_file(Path(settings.out))
    ids = split_ids(dataset, settings.data)
    job = Job(load(settings.export, settings.precision), dataset, settings)
    with open_partial(out.with_name(f"{out.name}.partial.jsonl"), origin(job), settings.batch, len(ids)) as partial:
        if partial.done:
            print(f"{partial.path}: going on after {partial.done:,} of {len(ids):,} records")
        for answered in job.run(done=partial.done):
            partial.append(answered)
        unread = write(job, partial, ids, out)
        partial.path.unlink()
    print(f"{out}: {len(ids):,} predictions for {job.task.name}, split {settings.split}")
    if unread:
        print(f"{len(unread)} records could not be read; they have an empty text: {unread[0]}", file=sys.stderr)


def split_ids(dataset: Dataset, path: str) -> list[str]:
    """The id of every record.

    Raises:
        UserError: a record cannot be named, or two have the same name: better known before hours of decoding.
    """
    try:
        ids = [dataset.tokens(index).id for index in range(len(dataset))]
    except UnreadableRecord as error:
        raise UserError(f"{path}: {error}; a file of predictions names every record, so prepare it again") from None
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise UserError(f"{path}: id {twice!r} stands more than once in {dataset.split!r}; prepare it again")
    return ids


def origin(job: Job) -> dict:
    """All that the texts follow from."""
    settings = job.settings
    return {
        "task": job.task.name,
        "data": {"split": settings.split, "fingerprint": job.dataset.fingerprint},
        "model": job.loaded.identity(),
        "decoding": None if job.answers else asdict(job.decoding),
        "batch": settings.batch,
        "seed": settings.seed,
    }


def write(job: Job, partial: Partial, ids: list[str], out: Path) -> list[str]:
    """The server's file, moved into place once it is found to hold every id once; returns what could not be read."""
    unread = []

    def pairs() -> Iterator[tuple[Texts, str]]:
        for record in partial.read():
            if record.problem:
                unread.append(record.problem)
            yield job.dataset.texts(record.index), record.text

    aside = out.with_name(f".{out.name}.writing")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            job.task.write_predictions(file, pairs())
        check_ids((id for id, _ in job.task.read_predictions(aside)), ids, str(out))
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)  # only there where something stopped the writing
    return unread


@contextmanager
def open_partial(path: Path, origin: dict, batch: int, total: int) -> Iterator[Partial]:
    """The predictions so far, held by this process.

    Raises:
        UserError: another process holds them, they were begun with something else, or they are damaged.
    """
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however that ends
        except BlockingIOError:
            raise UserError(f"{path}: another process is writing these predictions") from None
        partial = Partial(path, file)
        partial.resume(json.loads(json.dumps(origin)), batch, total)
        yield partial


class Partial:
    """Predictions so far: a line that says what they are of, then a JSON line for each record, in the data's order."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self._file = path, file
        self.done = 0  # records, in whole batches

    def resume(self, origin: dict, batch: int, total: int) -> None:
        """Count what is there, and drop what a kill left of the last batch."""
        self._file.seek(0)
        first = self._file.readline()
        if not first.endswith(b"\n"):  # new, or killed at once
            self._file.truncate(0)
            self._put([origin])
            return
        if differences := list(different(self._header(first), origin)):
            raise UserError(f"{self.path} was begun with {differences[0]}: use that, or remove the file to start anew")
        end = self._file.tell()
        for done, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            if self._record(line, done + 1).index != done - 1:
                raise self._damaged(done + 1)
            if done % batch == 0 or done == total:
                self.done, end = done, self._file.tell()
        self._file.truncate(end)

    def append(self, answered: list[Answered]) -> None:
        """A batch, in the file when this returns."""
        self._put([{k: v for k, v in asdict(record).items() if v is not None} for record in answered])

    def read(self) -> Iterator[Answered]:
        """All records from the first on."""
        self._file.seek(0)
        self._file.readline()
        for number, line in enumerate(self._file, 2):
            yield self._record(line, number)

    def _put(self, lines: list[dict]) -> None:
        self._file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        self._file.flush()

    def _header(self, line: bytes) -> dict:
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):
            raise self._damaged(1) from None

    def _record(self, line: bytes, number: int) -> Answered:
        try:
            return Answered(**json.loads(line))
        except (ValueError, TypeError):
            raise self._damaged(number) from None

    def _damaged(self, number: int) -> UserError:
        return UserError(f"{self.path}: line {number} is damaged: remove the file to start anew")


def different(before: dict, now: dict, section: str = "") -> Iterator[str]:
    """What is not the same in two nested dicts, such as `decoding.beams 5, and now it is 3`."""
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from different(old, new, f"{section}{key}.")
        elif old != new:
            yield f"{section}{key} {old}, and now it is {new}"
