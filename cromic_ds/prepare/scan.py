"""The first pass of preparation: which lines can be used, and to which split each belongs.

It reads every line once, in flat memory. It leaves the rejected lines, and a file of entries per split for the second pass.
"""

import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cromic_ds.data.disk_table import scratch_table
from cromic_ds.data.reject_reasons import DUPLICATE
from cromic_ds.files import read_json, write_json
from cromic_ds.prepare.corpus import Corpus
from cromic_ds.prepare.rejects import REJECTS_FILE, reject_line
from cromic_ds.progress import ProgressBar

ENTRY = np.dtype([("file", "<u4"), ("line", "<u8"), ("position", "<u8")])  # see `Scanned`

_CHUNK = 65_536


@dataclass
class ScanCounts:
    """How many lines the first pass has read, how many of them it has rejected, and the records of each split."""

    lines: int
    rejected: int
    records: dict[str, int]


def scan(corpus: Corpus, folder: Path, val_fraction: float) -> ScanCounts:
    """Make the scan's files in `folder`, unless an earlier run has, and return the counts."""
    summary = counts_file(folder)
    if not summary.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        counts = _write_entries(corpus, folder, val_fraction)
        records = counts.records
        if not records.get("val", 1) and val_fraction and records["train"] > 1:
            # A corpus too small for its share still has something to evaluate on: the last record.
            records["train"], records["val"] = records["train"] - 1, 1
            last = read_scan_entries(folder, "train", records["train"], records["train"] + 1)
            np.array(last, ENTRY).tofile(_split_file(folder, "val"))
            os.truncate(_split_file(folder, "train"), records["train"] * ENTRY.itemsize)
        write_json(summary, asdict(counts))
    return ScanCounts(**read_json(summary))


def counts_file(folder: Path) -> Path:
    """Return the file that is written last: if it is there, the scan is complete."""
    return folder / "counts.json"


def read_scan_entries(folder: Path, split: str, start: int, stop: int) -> list[tuple[int, int, int]]:
    """Return (file, line, position) of the entries [start, stop) of a split, as far as there are any."""
    return np.fromfile(_split_file(folder, split), ENTRY, stop - start, offset=start * ENTRY.itemsize).tolist()


def image_boundary(corpus: Corpus, folder: Path, split: str, at: int, n: int) -> int:
    """Return the first position in `at` … `n` at which a split of n entries can be divided without dividing an image."""

    def image_id(entry: int) -> str:
        [(file, _, position)] = read_scan_entries(folder, split, entry, entry + 1)
        return corpus.read(file, position).image_id

    if corpus.shares_images and at < n:
        before = image_id(at - 1)
        while at < n and image_id(at) == before:
            at += 1
    return at


def _write_entries(corpus: Corpus, folder: Path, val_fraction: float) -> ScanCounts:
    """Write the entries of usable lines and the rejected lines."""
    counts = ScanCounts(0, 0, dict.fromkeys(corpus.splits, 0))
    buffers: list[list[tuple[int, int, int]]] = [[] for _ in corpus.splits]
    with ExitStack() as stack:
        outputs = [stack.enter_context(_split_file(folder, split).open("wb")) for split in corpus.splits]
        rejects = stack.enter_context((folder / REJECTS_FILE).open("w", encoding="utf-8"))
        ids = stack.enter_context(scratch_table(folder / "ids.db", "key BLOB PRIMARY KEY"))
        bar = stack.enter_context(ProgressBar("scan", corpus.size, corpus.unit))
        for scanned in corpus.scan():
            counts.lines += 1
            if counts.lines % _CHUNK == 0:
                bar.update(corpus.progress(scanned), f"{counts.rejected:,} rejected")
            reason = scanned.reason
            if not reason and not ids.insert(corpus.key(scanned)):
                reason = DUPLICATE
            if reason:
                counts.rejected += 1
                rejects.write(reject_line(corpus.files[scanned.file], scanned.line, scanned.id, reason))
                continue
            split = corpus.split(scanned, val_fraction)
            counts.records[corpus.splits[split]] += 1
            buffers[split].append((scanned.file, scanned.line, scanned.position))
            if len(buffers[split]) == _CHUNK:
                np.array(buffers[split], ENTRY).tofile(outputs[split])
                buffers[split].clear()
        for buffer, output in zip(buffers, outputs):
            np.array(buffer, ENTRY).tofile(output)
        bar.update(corpus.size)
    return counts


def _split_file(folder: Path, split: str) -> Path:
    return folder / f"split-{split}.bin"
