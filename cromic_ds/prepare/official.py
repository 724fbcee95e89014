"""Which official files of a downstream task are there, and which splits can be prepared from them."""

from __future__ import annotations

from pathlib import Path

from cromic_ds.errors import UserError, nearest
from cromic_ds.tasks import TASKS
from cromic_ds.tasks.reader import OfficialReader

READERS: dict[str, type[OfficialReader]] = {name: task.reader for name, task in TASKS.items() if task.reader}


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
