"""The store, which `cromic-ds prepare` writes and training reads.

    STORE/store.json                 format version, tokenizer, settings, counts and a digest for each shard
    STORE/tokenizer/                 Hub format
    STORE/answers.json               classified answers only: the vocabulary, a list whose indices are the answers' ids
    STORE/rejects.jsonl              lines that preparation rejected
    STORE/<split>/text-00000.lmdb/   8-byte big-endian index within the shard -> record (record.py)
    STORE/<split>/image-00000.lmdb/  image id -> CRC32, encoded image

Records that share an image are in the same shard, which holds the image once. The same records in the same order give
the same files, byte for byte.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from cromic_ds.data.dataset import Texts, Tokens, UnreadableRecord
from cromic_ds.data.lmdb_cache import open_environment
from cromic_ds.data.record import EncodedRecord, without_checksum
from cromic_ds.errors import UserError, nearest
from cromic_ds.files import digest, read_json

FORMAT_VERSION = 2
META_FILE = "store.json"
ANSWERS_FILE = "answers.json"


def is_store(path: str | Path) -> bool:
    """Return whether a folder holds a complete store."""
    return (Path(path) / META_FILE).is_file()


def read_meta(path: str | Path) -> dict[str, Any]:
    """Return the content of store.json. Raises UserError if it is unreadable or of another format version."""
    file = Path(path) / META_FILE
    try:
        meta = read_json(file)
        version, splits = meta["version"], meta["splits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not readable as a store's description ({error!r}); prepare the store again") from None
    if version != FORMAT_VERSION or not isinstance(splits, dict):
        what = f"format version {version}, this program reads {FORMAT_VERSION}"
        raise UserError(f"{file}: {what}; prepare the store again")
    return meta


class StoreDataset:
    """One split of a store, as a `Dataset`. Opening it costs the same for any number of records."""

    def __init__(self, path: str | Path, split: str = "train"):
        self._seen = _identity(Path(path))
        meta = read_meta(path)
        if split not in meta["splits"]:
            known = ", ".join(meta["splits"])
            raise UserError(f"{path}: no split {split!r}{nearest(split, meta['splits'])}; it has {known}")
        shards = meta["splits"][split]["shards"]
        self.path, self.split, self.meta = Path(path), split, meta
        self.tokenizer_path = self.path / "tokenizer"
        self.fingerprint = digest(json.dumps([meta["tokenizer"]["fingerprint"], split, [s["digest"] for s in shards]]))
        self.task: str | None = meta.get("task")
        self.answers_fingerprint: str | None = meta.get("answers", {}).get("fingerprint")
        self._answers: list[str] | None = None
        self._dtype = np.dtype(f"<u{meta['token_bytes']}")
        self._ends = list(accumulate(s["records"] for s in shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def answers(self) -> list[str] | None:
        """The answer vocabulary, read at its first use. Raises UserError if it is not the one that the records refer to."""
        if self._answers is None and self.answers_fingerprint is not None:
            file = self.path / ANSWERS_FILE
            try:
                answers = read_json(file)
            except (OSError, ValueError) as error:
                raise UserError(f"{file}: cannot be read ({error}); prepare the store again") from None
            if answers_fingerprint(answers) != self.answers_fingerprint:
                raise UserError(f"{file}: not the answers that the store was prepared with; prepare the store again")
            self._answers = answers
        return self._answers

    def tokens(self, index: int) -> Tokens:
        return self._read(index).tokens(classified=self.answers_fingerprint is not None)

    def texts(self, index: int) -> Texts:
        return self._read(index).texts()

    def image(self, index: int) -> bytes | None:
        record = self._read(index)
        if not record.image_id:
            return None
        folder = shard_folders(self.path / self.split, self._locate(index)[0])[1]
        return self._get(folder, record.image_id.encode(), record.id, "its image is ")

    def _locate(self, index: int) -> tuple[int, int]:
        """Return (shard, index within the shard)."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}, split {self.split}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _read(self, index: int) -> EncodedRecord:
        shard, local = self._locate(index)
        folder = shard_folders(self.path / self.split, shard)[0]
        return EncodedRecord(self._get(folder, record_key(local), f"{self.split}[{index}]"), self._dtype)

    def _get(self, folder: Path, key: bytes, name: str, it_is: str = "") -> bytes:
        """Return a value of a shard without its checksum. Raises UnreadableRecord for record `name`."""
        try:
            with open_environment(folder, self._check_same).begin() as txn:
                stored = txn.get(key)
        except (lmdb.Error, UserError) as error:
            raise UnreadableRecord(name, str(error)) from None
        if stored is None:
            raise UnreadableRecord(name, f"{it_is}missing from {folder}")
        if (value := without_checksum(stored)) is None:
            raise UnreadableRecord(name, f"{it_is}damaged in {folder} (checksum)")
        return value

    def _check_same(self) -> None:
        """Raise UserError, before a shard is opened, if another store is in its place: those records would pass for ours."""
        if (now := _identity(self.path)) != self._seen:
            if read_meta(self.path) != self.meta:
                raise UserError(f"{self.path}: another store is in its place since this program started")
            self._seen = now


def record_key(index: int) -> bytes:
    """Return the LMDB key of a record, given its index in the shard."""
    return index.to_bytes(8, "big")


def shard_folders(folder: Path, number: int) -> tuple[Path, Path]:
    """Return the folders of the text records and of the images of a shard."""
    return folder / f"text-{number:05d}.lmdb", folder / f"image-{number:05d}.lmdb"


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return numbers that change when store.json is replaced or written again; None if there is none."""
    try:
        found = (path / META_FILE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def answers_fingerprint(answers: Sequence[str]) -> str:
    """Return a hash of an answer vocabulary and its order, which is kept in stores, checkpoints and exports."""
    return digest(json.dumps(list(answers), ensure_ascii=False))
