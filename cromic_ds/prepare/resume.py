"""One preparation at a time, resumed only with the settings and the input that it was started with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cromic_ds.data.tokenizer import tokenizer_fingerprint
from cromic_ds.errors import UserError
from cromic_ds.files import exclusive, read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from cromic_ds.prepare.settings import PrepareSettings

_FREE = ("out", "workers", "max_reject_rate")  # settings that may change
_FILES = ("text", "images", "published", "root", "answers", "extras")


@contextmanager
def only_one(work: Path) -> Iterator[None]:
    """Hold the lock of the work folder. Raises UserError if another process holds it."""
    work.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(work / "lock"))
        except BlockingIOError:
            raise UserError(f"{work.parent}: another process is preparing this store") from None
        yield


def refuse_other_settings(
    settings: PrepareSettings, tokenizer: PreTrainedTokenizerFast | None, inputs: list[Path], file: Path
) -> None:
    """Raise UserError if the unfinished preparation had other input or settings; `file` keeps what it had."""
    now: dict[str, Any] = {name: value for name, value in asdict(settings).items() if name not in _FREE}
    now["tokenizer"] = tokenizer_fingerprint(tokenizer) if tokenizer else settings.tokenizer
    for name in _FILES:
        paths = now[name] if isinstance(now[name], list) else [now[name]]
        now[name] = [_identity(path) for path in paths if path]
    now["official files"] = [_identity(path) for path in inputs]
    now = json.loads(json.dumps(now))
    if not file.exists():
        write_json(file, now, indent=1)
        return
    before = read_json(file)
    for name, value in now.items():
        if before.get(name) != value:
            was = f"was {before.get(name)}, is {value}" if isinstance(value, (int, float)) else "has changed"
            raise UserError(
                f"{file.parent.parent}: an unfinished preparation with other settings ({name} {was}); "
                "use the same, or remove that folder to start again"
            )


def _identity(path: str | Path) -> list[str | int]:
    """Return the path of a file or folder, and for a file also its size and time of change."""
    resolved = Path(path).resolve()
    if not resolved.is_file():
        return [str(resolved)]
    status = resolved.stat()
    return [str(resolved), status.st_size, status.st_mtime_ns]
