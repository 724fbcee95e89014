"""The file of a rating: the sheet and every judgment, in SQLite.

A judgment is on the disk before its rater sees the next answer. One that is taken back stays in the file, marked as withdrawn.
A unique index over the valid judgments prevents judging an answer twice, even with two browsers or two servers at once.
"""

from __future__ import annotations

import json
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cromic_ds.errors import UserError
from cromic_ds.files import digest
from cromic_ds.tools.rating.sheet import Item

RATING_FILE = "ratings.sqlite"
QUALITIES = (0, 1, 2)
MAX_NAME = 40  # characters of a rater's name

_FORMAT = 1
_SCHEMA = f"""
PRAGMA user_version = {_FORMAT};
CREATE TABLE about (json TEXT NOT NULL);
CREATE TABLE items (
    position INTEGER PRIMARY KEY, record INTEGER NOT NULL, record_id TEXT NOT NULL,
    writer TEXT NOT NULL, question TEXT NOT NULL, answer TEXT NOT NULL
);
CREATE TABLE raters (key TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE judgments (
    id INTEGER PRIMARY KEY, rater TEXT NOT NULL REFERENCES raters, position INTEGER NOT NULL REFERENCES items,
    passed INTEGER NOT NULL CHECK (passed IN (0, 1)), quality INTEGER NOT NULL CHECK (quality IN {QUALITIES}),
    made_at TEXT NOT NULL, withdrawn_at TEXT
);
CREATE UNIQUE INDEX standing ON judgments (rater, position) WHERE withdrawn_at IS NULL;
"""


class Malformed(ValueError):
    """A judgment that is not valid; the text is shown to its rater."""


class Conflict(ValueError):
    """A judgment that is valid, but not now; the text is shown to its rater."""


@dataclass(frozen=True)
class Judged:
    """One valid judgment, which was not withdrawn."""

    rater: str
    position: int
    writer: str
    passed: bool
    quality: int


def rater_name(text: object) -> str:
    """Return a rater's name as it is shown. Raises Malformed."""
    name = " ".join(unicodedata.normalize("NFKC", text).split()) if isinstance(text, str) else ""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise Malformed(f"rater must be a name of 1 to {MAX_NAME} characters")
    return name


class Judgments:
    """An existing rating file. It can be used from many threads, because every call has its own connection."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with closing(self._connect()) as db:
                (version,) = db.execute("PRAGMA user_version").fetchone()
                if version == _FORMAT:
                    (about,) = db.execute("SELECT json FROM about").fetchone()
                    (self.n_items,) = db.execute("SELECT count(*) FROM items").fetchone()
        except (sqlite3.Error, TypeError) as error:
            raise UserError(f"{path}: not readable as a rating ({error}); choose another --out") from None
        if version != _FORMAT:
            raise UserError(f"{path}: format {version} of a rating, this program reads {_FORMAT}; choose another --out")
        self.about: dict[str, Any] = json.loads(about)
        self.sheet = digest(about)

    @classmethod
    def create(cls, path: Path, about: dict[str, Any], items: Iterable[Item]) -> Judgments:
        """Write a new file; it appears under its name only when the sheet is complete."""
        aside = path.with_name(f"{path.name}.tmp")
        aside.unlink(missing_ok=True)
        rows = ((p, i.record, i.record_id, i.writer, i.question, i.answer) for p, i in enumerate(items))
        with closing(sqlite3.connect(aside)) as db:
            with db:
                db.executescript(_SCHEMA)
                db.execute("INSERT INTO about VALUES (?)", [json.dumps(about, ensure_ascii=False)])
                db.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", rows)
            db.execute("PRAGMA journal_mode = WAL")  # kept in the file: readers do not wait for the writer
        aside.replace(path)
        return cls(path)

    def item(self, position: int) -> Item | None:
        """Return the item at a position, None outside of the sheet."""
        if not 0 <= position < self.n_items:
            return None
        query = "SELECT record, record_id, writer, question, answer FROM items WHERE position = ?"
        with closing(self._connect()) as db:
            return Item(*db.execute(query, [position]).fetchone())

    def place(self, rater: str) -> int:
        """Return the position that a rater judges next, or the number of items if all are judged."""
        with closing(self._connect()) as db:
            return _place(db, rater_name(rater).casefold())

    def judge(self, rater: str, position: int, passed: bool, quality: int) -> None:
        """Store a judgment. Raises Malformed for values out of range and Conflict out of turn, and then stores nothing."""
        name = self._checked_name(rater, position)
        if quality not in QUALITIES:
            raise Malformed(f"quality {quality} is out of range: it must be 0, 1 or 2")
        with self._transaction() as db:
            place = _place(db, name.casefold())
            if position < place:
                raise Conflict(f"position {position} is already judged by {name}")
            if position > place:
                raise Conflict(f"position {position} is not {name}'s next, which is {place}")
            db.execute("INSERT OR IGNORE INTO raters VALUES (?, ?)", [name.casefold(), name])
            insert = "INSERT INTO judgments (rater, position, passed, quality, made_at) VALUES (?, ?, ?, ?, ?)"
            db.execute(insert, [name.casefold(), position, int(passed), quality, _now()])

    def withdraw(self, rater: str, position: int) -> None:
        """Withdraw a rater's last judgment, which must be that of `position`. Raises the same errors as `judge`."""
        name = self._checked_name(rater, position)
        with self._transaction() as db:
            if position != _place(db, name.casefold()) - 1:
                raise Conflict(f"position {position} is not {name}'s last judgment")
            update = "UPDATE judgments SET withdrawn_at = ? WHERE rater = ? AND position = ? AND withdrawn_at IS NULL"
            db.execute(update, [_now(), name.casefold(), position])

    def valid(self) -> Iterator[Judged]:
        """Yield all judgments that were not withdrawn, rater by rater, in the order of the sheet."""
        with closing(self._connect()) as db:
            rows = db.execute(
                "SELECT name, position, writer, passed, quality FROM judgments JOIN items USING (position) "
                "JOIN raters ON rater = key WHERE withdrawn_at IS NULL ORDER BY rater, position"
            )
            for name, position, writer, passed, quality in rows:
                yield Judged(name, position, writer, bool(passed), quality)

    def n_withdrawn(self) -> int:
        with closing(self._connect()) as db:
            return db.execute("SELECT count(*) FROM judgments WHERE withdrawn_at IS NOT NULL").fetchone()[0]

    def _checked_name(self, rater: str, position: int) -> str:
        name = rater_name(rater)
        if not 0 <= position < self.n_items:
            raise Malformed(f"position {position} is not on the sheet: it has 0 to {self.n_items - 1}")
        return name

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: a missing file is an error, instead of being created empty.
        db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=rw", uri=True, timeout=10, isolation_level=None)
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA synchronous = FULL")  # with WAL, NORMAL would lose the last judgments when the power fails
        return db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block as a transaction that excludes other writers; roll it back if the block raises."""
        with closing(self._connect()) as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")


def _place(db: sqlite3.Connection, key: str) -> int:
    # Judgments are made in order and only the last can be withdrawn, so their number is the next position.
    query = "SELECT count(*) FROM judgments WHERE rater = ? AND withdrawn_at IS NULL"
    return db.execute(query, [key]).fetchone()[0]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
