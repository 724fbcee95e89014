"""Preparation's first pass: which lines can be used, and to which split each belongs.

Reads every line once, in flat memory. Leaves in its folder one file of entries per split, from which the second pass
makes shards in any order, and the rejected lines.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from cromic_ds.data.hash_index import HashIndex, HashIndexWriter
from cromic_ds.data.reject_reasons import DUPLICATE
from cromic_ds.prepare.corpus import Corpus
from cromic_ds.prepare.rejects import reject_line
from cromic_ds.progress import ProgressBar

ENTRY = np.dtype([("file", "<u4"), ("line", "<u8"), ("position", "<u8"), ("split", "u1")])

_CHUNK = 65_536


def scan(corpus: Corpus, folder: Path, val_fraction: float) -> dict:
    """Fill `folder` unless an earlier run has; returns {"lines": n, "rejected": n, "records": {split: n}}."""
    summary = folder / "counts.json"
    if not summary.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        lines, ids = _write_entries(corpus, folder, val_fraction)
        records = _write_splits(corpus, folder, ids)
        if not records.get("val", 1) and val_fraction and records["train"] > 1:
            _move_last(folder, "train", "val")  # a corpus too small for its share still has something to evaluate on
            records["train"], records["val"] = records["train"] - 1, 1
        counts = {"lines": lines, "rejected": lines - sum(records.values()), "records": records}
        aside = summary.with_suffix(".tmp")
        aside.write_text(json.dumps(counts))
        aside.rename(summary)
    return json.loads(summary.read_text())


def read_entries(folder: Path, split: str, start: int, stop: int) -> np.ndarray:
    """The entries [start, stop) of a split, as far as there are any."""
    return np.fromfile(_split_file(folder, split), ENTRY, stop - start, offset=start * ENTRY.itemsize)


def image_boundary(corpus: Corpus, folder: Path, split: str, at: int, n: int) -> int:
    """The first of the places `at` … `n` of a split of n entries where an image does not go on."""

    def image_id(entry: int) -> str:
        [(file, _, position, _)] = read_entries(folder, split, entry, entry + 1).tolist()
        return corpus.read(file, position).image_id

    if corpus.shares_images and at < n:
        before = image_id(at - 1)
        while at < n and image_id(at) == before:
            at += 1
    return at


def _write_entries(corpus: Corpus, folder: Path, val_fraction: float) -> tuple[int, HashIndex]:
    """The good lines to all.bin, the others to rejects; returns the number of lines and the index of the good ids."""
    ids = HashIndexWriter(folder / "ids", corpus.size)
    lines = good = 0
    buffer: list[tuple[int, int, int, int]] = []
    with (
        (folder / "all.bin").open("wb") as entries,
        (folder / "unusable.jsonl").open("w", encoding="utf-8") as rejects,
        ProgressBar("scan", corpus.size, corpus.unit) as bar,
    ):
        for scanned in corpus.scan():
            lines += 1
            if scanned.reason:
                rejects.write(reject_line(corpus.files[scanned.file], scanned.line, scanned.id, scanned.reason))
                continue
            ids.add(corpus.key(scanned), good)
            good += 1
            buffer.append((scanned.file, scanned.line, scanned.position, corpus.split(scanned, val_fraction)))
            if len(buffer) == _CHUNK:
                np.array(buffer, ENTRY).tofile(entries)
                buffer.clear()
                bar.update(corpus.progress(scanned))
        np.array(buffer, ENTRY).tofile(entries)
        bar.update(corpus.size)
    return lines, ids.close()


def _write_splits(corpus: Corpus, folder: Path, ids: HashIndex) -> dict[str, int]:
    """all.bin without repeated ids, one file per split; returns the number of records of each."""
    everything = folder / "all.bin"
    n = everything.stat().st_size // ENTRY.itemsize
    repeated = np.memmap(folder / "repeated.bin", bool, mode="w+", shape=max(n, 1))
    for positions in ids.repeated():
        repeated[positions] = True
    records = dict.fromkeys(corpus.splits, 0)
    with (folder / "repeated.jsonl").open("w", encoding="utf-8") as rejects, ExitStack() as stack:
        outputs = [stack.enter_context(_split_file(folder, split).open("wb")) for split in corpus.splits]
        for start in range(0, n, _CHUNK):
            chunk = np.fromfile(everything, ENTRY, _CHUNK, offset=start * ENTRY.itemsize)
            drop = np.array(repeated[start : start + len(chunk)])
            for file, line, position, _ in chunk[drop].tolist():
                id = corpus.read(file, position).id
                rejects.write(reject_line(corpus.files[file], line, id, DUPLICATE))
            for number, split in enumerate(corpus.splits):
                kept = chunk[~drop & (chunk["split"] == number)]
                kept.tofile(outputs[number])
                records[split] += len(kept)
    everything.unlink()
    (folder / "repeated.bin").unlink()
    shutil.rmtree(ids.folder)
    return records


def _move_last(folder: Path, source: str, target: str) -> None:
    with _split_file(folder, source).open("r+b") as file:
        file.seek(-ENTRY.itemsize, os.SEEK_END)
        last = file.read()
        file.seek(-ENTRY.itemsize, os.SEEK_END)
        file.truncate()
    with _split_file(folder, target).open("ab") as file:
        file.write(last)


def _split_file(folder: Path, split: str) -> Path:
    return folder / f"split-{split}.bin"
