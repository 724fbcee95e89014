"""The predictions of a split while it is decoded: a JSON lines file from which an interrupted job resumes.

Its first line says what the texts follow from, each further line is the text of a record, in the order of the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from cromic_ds.errors import UserError
from cromic_ds.files import exclusive

T = TypeVar("T")


@dataclass(slots=True)
class AnsweredRecord:
    """The model's text for a record. The fields are those of a line of the file."""

    index: int  # in the data set
    text: str
    problem: str | None = None  # why the record could not be read; its text is then empty


@contextmanager
def open_partial(path: Path, origin: dict[str, Any], batch: int, total: int) -> Iterator[PartialPredictions]:
    """Open the predictions so far of a split with `total` records, locked for this process; an incomplete batch is dropped.

    Raises UserError if another process has the file open, it was started with another `origin` (all that the texts follow
    from), or it is damaged.
    """
    with ExitStack() as stack:
        try:
            partial = PartialPredictions(path, stack.enter_context(exclusive(path)))
        except BlockingIOError:
            raise UserError(f"{path}: another process is writing these predictions") from None
        partial.resume(json.loads(json.dumps(origin)), batch, total)
        yield partial


class PartialPredictions:
    """The file of the predictions so far; see `open_partial`."""

    def __init__(self, path: Path, file: IO[bytes]):
        self.path = path
        self.done = 0  # records, in whole batches
        self._file = file

    def resume(self, origin: dict[str, Any], batch: int, total: int) -> None:
        """Count the records in the file, and drop an incomplete last batch that a killed process left."""
        self._file.seek(0)
        first = self._file.readline()
        if not first.endswith(b"\n"):  # a new file, or its process was killed at once
            self._file.truncate(0)
            self._write_lines([origin])
            return
        if difference := next(changed_entries(self._parse(dict, first, 1), origin), None):
            raise UserError(
                f"{self.path} was started with {difference}: use that setting, or remove the file to start again"
            )
        end = self._file.tell()
        for done, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            if self._parse(AnsweredRecord, line, done + 1).index != done - 1:
                raise self._damaged(done + 1)
            if done % batch == 0 or done == total:
                self.done, end = done, self._file.tell()
        self._file.truncate(end)

    def append(self, answered: list[AnsweredRecord]) -> None:
        """Write the texts of a batch; they are in the file when this returns."""
        self._write_lines([{k: v for k, v in asdict(record).items() if v is not None} for record in answered])

    def read(self) -> Iterator[AnsweredRecord]:
        """Yield all records from the first on."""
        self._file.seek(0)
        self._file.readline()
        for number, line in enumerate(self._file, 2):
            yield self._parse(AnsweredRecord, line, number)

    def _write_lines(self, lines: list[dict[str, Any]]) -> None:
        self._file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        self._file.flush()

    def _parse(self, kind: Callable[..., T], line: bytes, number: int) -> T:
        try:
            return kind(**json.loads(line))
        except (ValueError, TypeError):
            raise self._damaged(number) from None

    def _damaged(self, number: int) -> UserError:
        return UserError(f"{self.path}: line {number} is damaged: remove the file to start again")


def changed_entries(before: dict[str, Any], now: dict[str, Any], section: str = "") -> Iterator[str]:
    """Yield what differs between two nested dicts, such as `decoding.beams 5, and now it is 3`."""
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from changed_entries(old, new, f"{section}{key}.")
        elif old != new:
            yield f"{section}{key} {old}, and now it is {new}"
