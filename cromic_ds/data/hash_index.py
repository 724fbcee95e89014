"""An index of more keys than fit into memory: 128-bit hashes, spread over files of which one at a time is sorted."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("value", "<u8")])
_BUFFERED = 65_536
_BYTES_PER_BUCKET = 256 << 20  # of the text that is indexed: a few million keys at most
_MAX_BUCKETS = 256


class HashIndexWriter:
    """Collects (key, value) pairs; `close` sorts them and puts the index in place under its name."""

    def __init__(self, folder: Path, indexed_bytes: int):
        """`indexed_bytes`: about how much text the keys come from, which decides how many buckets there are."""
        self.folder, self._aside = folder, folder.with_name(folder.name + ".tmp")
        shutil.rmtree(self._aside, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        self._aside.mkdir(parents=True)
        self.buckets = min(_MAX_BUCKETS, 1 + indexed_bytes // _BYTES_PER_BUCKET)
        self._buffer = bytearray()

    def add(self, key: bytes, value: int) -> None:
        self._buffer += _hash(key)
        self._buffer += value.to_bytes(8, "little")
        if len(self._buffer) >= _BUFFERED * _ENTRY.itemsize:
            self._spill()

    def _spill(self) -> None:
        entries = np.frombuffer(bytes(self._buffer), _ENTRY)
        self._buffer.clear()
        bucket = entries["high"] % np.uint64(self.buckets)
        for b in np.unique(bucket):
            with (self._aside / f"{b:03d}.bin").open("ab") as file:
                entries[bucket == b].tofile(file)

    def close(self) -> HashIndex:
        self._spill()
        for b in range(self.buckets):
            unsorted = self._aside / f"{b:03d}.bin"
            entries = np.fromfile(unsorted, _ENTRY) if unsorted.exists() else np.empty(0, _ENTRY)
            order = np.lexsort((entries["value"], entries["low"], entries["high"]))
            # One row per field, so that a look-up touches a few pages of the first row only.
            np.save(self._aside / f"{b:03d}.npy", np.stack([entries[field][order] for field in _ENTRY.names]))
            unsorted.unlink(missing_ok=True)
        self._aside.rename(self.folder)
        return HashIndex(self.folder)


class HashIndex:
    """Read side; picklable, and maps its files lazily in each process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.buckets = len(list(folder.glob("*.npy")))
        self._maps: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": {}}

    def find(self, key: bytes) -> int | None:
        """The smallest value that was added under `key`."""
        high, low = np.frombuffer(_hash(key), "<u8")
        highs, lows, values = self._bucket(int(high % np.uint64(self.buckets)))
        at = int(np.searchsorted(highs, high))
        while at < len(highs) and highs[at] == high:
            if lows[at] == low:
                return int(values[at])
            at += 1
        return None

    def repeated(self) -> Iterator[np.ndarray]:
        """For every key the values after its smallest one; one array per bucket."""
        for b in range(self.buckets):
            highs, lows, values = self._bucket(b)
            same = (highs[1:] == highs[:-1]) & (lows[1:] == lows[:-1])
            yield np.array(values[1:][same])

    def _bucket(self, b: int) -> np.ndarray:
        if b not in self._maps:
            self._maps[b] = np.load(self.folder / f"{b:03d}.npy", mmap_mode="r")
        return self._maps[b]


def _hash(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=16).digest()


def hash_fraction(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone: the same on every machine and in every order."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, person=b"split").digest(), "big") / 2**64
