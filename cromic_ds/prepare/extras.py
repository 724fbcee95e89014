"""Further fields of records, by id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cromic_ds.data.sources import IndexedLines
from cromic_ds.errors import UserError


class ExtrasSource:
    """A file of JSON lines `{"id": ..., ...}` whose other fields are stored with the record of that id."""

    def __init__(self, path: Path, work: Path):
        if not path.is_file():
            raise UserError(f"{path}: no such file; extras is a file of JSON lines")
        self.lines = IndexedLines(path, work / "extra_lines.db", _json_key)

    def get(self, id: str) -> dict[str, Any]:
        """Return the fields of a record, an empty dict if the file has none."""
        line = self.lines.find(id)
        return {k: v for k, v in json.loads(line).items() if k != "id"} if line is not None else {}


def _json_key(path: Path, number: int, line: bytes) -> bytes:
    try:
        return json.loads(line)["id"].encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f'{path}:{number}: not a JSON object with a string "id"') from None
