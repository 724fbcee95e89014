"""What preparation could not use: JSON lines `{"file", "line", "id", "reason"}`, collected to one file in the input's order."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

REJECTS_FILE = "rejects.jsonl"


def reject_line(file: str, line: int, id: str, reason: str) -> str:
    """One line of rejects.jsonl; `line` is the number of the line, or of the entry in its list, from 1."""
    return json.dumps({"file": file, "line": line, "id": id, "reason": reason}, ensure_ascii=False) + "\n"


def merge_rejects(parts: Iterable[Path], files: list[str], out: Path, work: Path) -> dict[str, int]:
    """All lines of the `parts` that are there to `out`, in the order of `files`; how many there are by reason.

    They are sorted on disk: a large preparation may have millions.
    """
    order = {file: number for number, file in enumerate(files)}
    reasons: Counter[str] = Counter()

    def rows() -> Iterator[tuple[int, int, str, str]]:
        for part in parts:
            for line in _complete_lines(part):
                reject = json.loads(line)
                reasons[reject["reason"]] += 1
                yield order[reject["file"]], reject["line"], reject["reason"], line

    database, aside = work / "rejects.db", out.with_name(f"{out.name}.tmp")
    database.unlink(missing_ok=True)
    with closing(sqlite3.connect(database, isolation_level=None)) as db, aside.open("w", encoding="utf-8") as merged:
        db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN")
        db.execute("CREATE TABLE rejects (file, line, reason, text)")
        db.executemany("INSERT INTO rejects VALUES (?, ?, ?, ?)", rows())
        merged.writelines(text for (text,) in db.execute("SELECT text FROM rejects ORDER BY file, line, reason, text"))
    database.unlink()
    aside.rename(out)
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def list_reasons(reasons: dict[str, int]) -> str:
    """The most frequent ones in words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in list(reasons.items())[:4]) or "the input is empty"


def _complete_lines(file: Path) -> Iterator[str]:
    if file.exists():
        with file.open(encoding="utf-8") as lines:
            yield from (line for line in lines if line.endswith("\n"))  # a killed process may leave the last one cut
