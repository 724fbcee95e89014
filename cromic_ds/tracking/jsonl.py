"""`metrics.jsonl`: the source of truth for every dashboard and report of a run."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cromic_ds.files import replacing
from cromic_ds.run_folder import RunFolder
from cromic_ds.tracking.tracker import Tracker, Values


class JsonlTracker(Tracker):
    """One JSON object per line: `{"step", "kind", "time" (Unix seconds), …values}`, floats in full precision.

    JSON has no NaN or infinity: such a value is written as null, and its key is listed under "nonfinite". Every line is passed
    to the operating system in one write, so that a killed process tears at most the last one. So that the file of a run resumed
    at step s reads as that of an uninterrupted run, records of later steps are dropped (the file is replaced), and records of
    step s itself that are in the file are not written twice.
    """

    def __init__(self, run_folder: Path, resume_step: int | None = None):
        path = RunFolder(run_folder).metrics
        run_folder.mkdir(parents=True, exist_ok=True)
        self._resume_step = resume_step or 0
        _drop_after(path, self._resume_step)
        self._file = path.open("ab", buffering=0)
        last = newest_metrics(run_folder)  # after the drop nothing follows the records of the step
        self._recorded = {record["kind"] for record in last if record["step"] == self._resume_step}

    def log(self, step: int, values: Values, kind: str) -> None:
        if step == self._resume_step and kind in self._recorded:
            return
        plain = {name: plain_value(value) for name, value in values.items()}
        nonfinite = [name for name, value in plain.items() if isinstance(value, float) and not math.isfinite(value)]
        record = {"step": step, "kind": kind, "time": round(time.time(), 3), **plain, **dict.fromkeys(nonfinite)}
        if nonfinite:
            record["nonfinite"] = nonfinite
        line = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
        while line:  # on a disk that is getting full, the first write takes a part and the next one raises
            line = line[self._file.write(line) :]

    def finish(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()


def read_metrics(run_folder: str | os.PathLike[str], kind: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the run's records in order, all or those of one kind; lines that a crash tore are skipped."""
    with RunFolder(run_folder).metrics.open("rb") as file:
        for record in filter(None, map(_parse, file)):
            if kind in (None, record["kind"]):
                yield record


def newest_metrics(run_folder: str | os.PathLike[str], n_bytes: int = 1 << 16) -> list[dict[str, Any]]:
    """Return the records in the last `n_bytes` of the file, in order; none if there is no file."""
    try:
        with RunFolder(run_folder).metrics.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - n_bytes)
            file.seek(start)
            lines = file.readlines()
    except FileNotFoundError:
        return []
    return list(filter(None, map(_parse, lines)))  # the first line may be incomplete


def plain_value(value: Any) -> float | int | str | None:
    """Return a number of numpy or torch (a 0-d tensor) as one of Python; everything else unchanged."""
    return value.item() if hasattr(value, "item") else value


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:  # includes bytes that are not UTF-8
        return None
    return record if isinstance(record, dict) and {"step", "kind"} <= record.keys() else None


def _drop_after(path: Path, step: int) -> None:
    """Remove records of later steps and torn lines from the file, if there is one."""

    def kept(line: bytes) -> bool:
        record = _parse(line)
        return record is not None and record["step"] <= step

    if path.exists():
        with path.open("rb") as old:
            if not all(map(kept, old)):
                old.seek(0)
                with replacing(path, "wb") as new:
                    new.writelines(filter(kept, old))
