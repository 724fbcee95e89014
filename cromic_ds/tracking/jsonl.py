"""`metrics.jsonl`: the source of truth for every dashboard and report of a run."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from cromic_ds.tracking.tracker import Tracker

FILE_NAME = "metrics.jsonl"


class JsonlTracker(Tracker):
    """One JSON object a line: `{"step", "kind", "time" (unix seconds), …values}`, floats at full precision.

    JSON has no NaN or infinity: such a value is written as null and its key listed under "nonfinite".
    Every line is handed to the operating system in one write, so that a killed process tears at most the last one.

    A run resumed at step s writes the steps after s again: records beyond s are dropped (the file is rewritten aside
    and renamed), and what it already has of step s is not written twice. It then reads as an uninterrupted run's.
    """

    def __init__(self, run_folder: Path, resume_step: int | None = None):
        path = run_folder / FILE_NAME
        run_folder.mkdir(parents=True, exist_ok=True)
        self._recorded = _drop_after(path, resume_step or 0)
        self._resume_step = resume_step or 0
        self._file = path.open("ab", buffering=0)

    def log(self, step: int, values: dict[str, float | int | str], kind: str) -> None:
        if step == self._resume_step and kind in self._recorded:
            return
        values = {name: plain(value) for name, value in values.items()}
        nonfinite = [name for name, v in values.items() if isinstance(v, float) and not math.isfinite(v)]
        record = {"step": step, "kind": kind, "time": round(time.time(), 3), **values, **dict.fromkeys(nonfinite)}
        if nonfinite:
            record["nonfinite"] = nonfinite
        line = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
        while line:  # on a disk that gets full the first write takes a part, and the next one raises
            line = line[self._file.write(line) :]

    def finish(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()


def read_metrics(run_folder: Path, kind: str | None = None) -> Iterator[dict]:
    """The run's records in order, all or of one kind; a line that a kill or crash tore is passed over."""
    with (run_folder / FILE_NAME).open("rb") as file:
        for line in file:
            record = _parse(line)
            if record is not None and kind in (None, record["kind"]):
                yield record


def newest_metrics(run_folder: Path, n_bytes: int = 1 << 16) -> list[dict]:
    """The records in the last `n_bytes` of the file, in order; none where there is no file."""
    try:
        with (run_folder / FILE_NAME).open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - n_bytes)
            file.seek(start)
            lines = file.readlines()
    except FileNotFoundError:
        return []
    return [record for line in lines if (record := _parse(line)) is not None]  # the first one may be a half


def plain(value: object) -> float | int | str | None:
    """A number of numpy or torch (a 0-d tensor) as Python's own; everything else as it is."""
    return value.item() if hasattr(value, "item") else value


def _parse(line: bytes) -> dict | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:  # also of bytes that are no UTF-8
        return None
    return record if isinstance(record, dict) and {"step", "kind"} <= record.keys() else None


def _drop_after(path: Path, step: int) -> set[str]:
    """Takes records beyond `step` and torn lines out of the file; returns the kinds recorded at `step` itself."""
    if not path.exists():
        return set()
    recorded, dropped = set(), 0
    aside = path.with_name(path.name + ".tmp")
    with path.open("rb") as old, aside.open("wb") as new:
        for line in old:
            record = _parse(line)
            if record is None or record["step"] > step:
                dropped += 1
                continue
            new.write(line)
            if record["step"] == step:
                recorded.add(record["kind"])
        new.flush()
        os.fsync(new.fileno())
    if dropped:
        aside.replace(path)
    else:
        aside.unlink()
    return recorded
