"""JSON files with long lists, written item by item, to the same bytes as `json.dump` would write at once."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any


class JsonLists(AbstractContextManager):
    """A JSON file whose text is `before`, a list, `after`; `next_list` puts another list behind the first.

    ascii: write all other characters as `\\uXXXX`.
    """

    def __init__(self, path: Path, before: str = "", after: str = "", ascii: bool = True):
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._after, self._ascii = after, ascii
        self._file.write(f"{before}[")
        self._between = ""

    def add(self, item: Any) -> None:
        self._file.write(self._between + json.dumps(item, ensure_ascii=self._ascii))
        self._between = ", "

    def next_list(self, between: str) -> None:
        self._file.write(f"]{between}[")
        self._between = ""

    def __exit__(self, *exception) -> None:
        self._file.write(f"]{self._after}")
        self._file.close()
