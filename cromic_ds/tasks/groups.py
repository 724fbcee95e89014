"""Values grouped by key on disk, for joining files that do not fit into memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any


class DiskGroups(AbstractContextManager):
    """Each key has numbered parts, whose values are what JSON can hold."""

    def __init__(self, file: Path):
        file.unlink(missing_ok=True)
        self._file, self._db = file, sqlite3.connect(file, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN")
        self._db.execute(
            "CREATE TABLE parts (key TEXT, part INTEGER, value TEXT, used INTEGER DEFAULT 0, PRIMARY KEY (key, part)) "
            "WITHOUT ROWID"
        )

    def fill(self, parts: Iterable[tuple[str, int, Any]]) -> Iterator[tuple[str, Any]]:
        """Keep each (key, part, value); (key, value) is returned where that part has been there before."""
        insert = "INSERT OR IGNORE INTO parts (key, part, value) VALUES (?, ?, ?)"
        for key, part, value in parts:
            if not self._db.execute(insert, (key, part, json.dumps(value))).rowcount:
                yield key, value

    def get(self, key: str) -> list[Any]:
        """The values of a key in the order of its parts."""
        rows = self._db.execute("SELECT value FROM parts WHERE key = ? ORDER BY part", (key,)).fetchall()
        self._db.execute("UPDATE parts SET used = 1 WHERE key = ?", (key,))
        return [json.loads(value) for (value,) in rows]

    def unused(self) -> Iterator[tuple[str, Any]]:
        """What nobody got."""
        for key, value in self._db.execute("SELECT key, value FROM parts WHERE NOT used"):
            yield key, json.loads(value)

    def __exit__(self, *exception) -> None:
        self._db.close()
        self._file.unlink(missing_ok=True)
