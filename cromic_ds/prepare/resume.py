"""One preparation at a time, continued only with what it began with."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cromic_ds.data.tokenizer import tokenizer_fingerprint
from cromic_ds.errors import UserError

if TYPE_CHECKING:
    from cromic_ds.prepare.settings import PrepareSettings

_FREE = ("out", "workers", "max_reject_rate")  # settings that may change
_FILES = ("text", "images", "published", "root", "answers", "extras")


@contextmanager
def only_one(work: Path) -> Iterator[None]:
    """Hold the work folder; the lock goes with the process, however that ends."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{work.parent}: another process is preparing this store") from None
        yield


def refuse_other_settings(settings: PrepareSettings, tokenizer, inputs: list[Path], file: Path) -> None:
    """Refuse to continue a run whose input or settings were others; `file` says what they were."""
    now = {name: value for name, value in asdict(settings).items() if name not in _FREE}
    now["tokenizer"] = tokenizer_fingerprint(tokenizer) if tokenizer else settings.tokenizer
    for name in _FILES:
        paths = now[name] if isinstance(now[name], list) else [now[name]]
        now[name] = [_identity(path) for path in paths if path]
    now["official files"] = [_identity(path) for path in inputs]
    now = json.loads(json.dumps(now))
    if not file.exists():
        aside = file.with_suffix(".tmp")
        aside.write_text(json.dumps(now, ensure_ascii=False, indent=1), encoding="utf-8")
        aside.rename(file)
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    for name, value in now.items():
        if before.get(name) != value:
            was = f"was {before.get(name)}, is {value}" if isinstance(value, (int, float)) else "has changed"
            raise UserError(
                f"{file.parent.parent}: an unfinished preparation with other settings ({name} {was}); "
                "use the same, or remove that folder to start anew"
            )


def _identity(path: str | Path) -> list:
    """What tells a file from a changed one; for a folder, its name."""
    resolved = Path(path).resolve()
    if not resolved.is_file():
        return [str(resolved)]
    status = resolved.stat()
    return [str(resolved), status.st_size, status.st_mtime_ns]
