"""JSON files with long lists, written item by item, to the same bytes as one `json.dump`."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any


class JsonLists(AbstractContextManager):
    """A JSON file that consists of the text `before`, a list, and the text `after`. `next_list` starts another list.

    ascii: escape all other characters as `\\uXXXX`.
    """

    def __init__(self, path: Path, before: str = "", after: str = "", ascii: bool = True):
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._after, self._ascii = after, ascii
        self._file.write(f"{before}[")
        self._separator = ""

    def add(self, item: Any) -> None:
        self._file.write(self._separator + json.dumps(item, ensure_ascii=self._ascii))
        self._separator = ", "

    def next_list(self, between: str) -> None:
        """End the list, and start another one after the text `between`."""
        self._file.write(f"]{between}[")
        self._separator = ""

    def __exit__(self, *exception: object) -> None:
        self._file.write(f"]{self._after}")
        self._file.close()
