"""Rejected lines: JSON objects `{"file", "line", "id", "reason"}`, collected in one file in the order of the input."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from cromic_ds.data.disk_table import scratch_table
from cromic_ds.files import read_lines, replacing

REJECTS_FILE = "rejects.jsonl"
_COLUMNS = "file INTEGER, line INTEGER, reason TEXT, text TEXT, PRIMARY KEY (file, line, reason, text)"


def reject_line(file: str, line: int, id: str, reason: str) -> str:
    """Return one line of rejects.jsonl; `line` is the number of the line, or of the entry in its list, from 1."""
    return json.dumps({"file": file, "line": line, "id": id, "reason": reason}, ensure_ascii=False) + "\n"


def merge_rejects(parts: Iterable[Path], files: list[str], out: Path, work: Path) -> dict[str, int]:
    """Write the rejected lines of all `parts` that exist to `out`, and return their number by reason.

    They are sorted by the position of their file in `files`, and within it by line. A large preparation may have millions,
    so they are sorted on disk.
    """
    order = {file: number for number, file in enumerate(files)}
    reasons: Counter[str] = Counter()
    with scratch_table(work / "rejects.db", _COLUMNS) as rejects, replacing(out) as merged:
        for part in parts:
            for _, _, line in read_lines(part) if part.exists() else ():
                if not line.endswith(b"\n"):
                    continue  # a killed process may not complete its last line
                reject = json.loads(line)
                if rejects.insert(order[reject["file"]], reject["line"], reject["reason"], line.decode()):
                    reasons[reject["reason"]] += 1
        rows = rejects.execute("SELECT text FROM rows ORDER BY file, line, reason, text")
        merged.writelines(text for (text,) in rows)
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def list_reasons(reasons: dict[str, int]) -> str:
    """Return the most frequent reasons as text."""
    return ", ".join(f"{count:,} {reason}" for reason, count in list(reasons.items())[:4]) or "the input is empty"
