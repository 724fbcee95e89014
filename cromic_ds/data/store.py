"""The store: what `cromic-ds prepare` writes and training reads.

    STORE/store.json                 format version, tokenizer, settings, counts and a digest per shard
    STORE/tokenizer/                 Hub format
    STORE/answers.json               classified answers only: the vocabulary, a list whose indices are the answers' ids
    STORE/rejects.jsonl              what preparation could not use
    STORE/<split>/text-00000.lmdb/   8-byte big-endian index within the shard -> record (record.py)
    STORE/<split>/image-00000.lmdb/  image id -> CRC32, encoded image

Records that share an image lie in the same shard, which holds it once. For the same records in the same order, all
files are the same to the byte.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import lmdb
import numpy as np

from cromic_ds.data.dataset import Texts, Tokens, UnreadableRecord
from cromic_ds.data.lmdb_cache import environment
from cromic_ds.data.record import Packed, without_checksum
from cromic_ds.errors import UserError, nearest

FORMAT_VERSION = 2
ANSWERS_FILE = "answers.json"


def is_store(path: str | Path) -> bool:
    return (Path(path) / "store.json").is_file()


def read_meta(path: str | Path) -> dict:
    """store.json, its version checked."""
    file = Path(path) / "store.json"
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        version, splits = meta["version"], meta["splits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not readable as a store's description ({error!r}); prepare the store again") from None
    if version != FORMAT_VERSION or not isinstance(splits, dict):
        raise UserError(
            f"{file}: format version {version}, this program reads {FORMAT_VERSION}; prepare the store again"
        )
    return meta


class StoreDataset:
    """One split of a store, as a `Dataset`. Start-up cost does not depend on the number of records."""

    def __init__(self, path: str | Path, split: str = "train"):
        self._seen = _identity(Path(path))
        meta = read_meta(path)
        if split not in meta["splits"]:
            known = ", ".join(meta["splits"])
            raise UserError(f"{path}: no split {split!r}{nearest(split, meta['splits'])}; it has {known}")
        shards = meta["splits"][split]["shards"]
        self.path, self.split, self.meta = Path(path), split, meta
        self.tokenizer_path = self.path / "tokenizer"
        identity = json.dumps([meta["tokenizer"]["fingerprint"], split, [s["digest"] for s in shards]])
        self.fingerprint = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        self.task: str | None = meta.get("task")
        self.answers_fingerprint: str | None = meta.get("answers", {}).get("fingerprint")
        self._answers: list[str] | None = None
        self._dtype = np.dtype(f"<u{meta['token_bytes']}")
        self._ends = list(accumulate(s["records"] for s in shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def answers(self) -> list[str] | None:
        """The answer vocabulary, read at its first use. Raises UserError where it is not the one of the records."""
        if self._answers is None and self.answers_fingerprint is not None:
            file = self.path / ANSWERS_FILE
            try:
                answers = json.loads(file.read_text(encoding="utf-8"))
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
        value = _get(folder, record.image_id.encode(), record.id, self._check_same)
        if value is None:
            raise UnreadableRecord(record.id, f"its image is missing from {folder}")
        image = without_checksum(value)
        if image is None:
            raise UnreadableRecord(record.id, f"its image is damaged in {folder} (checksum)")
        return image

    def _locate(self, index: int) -> tuple[int, int]:
        """(shard, index within it)."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}, split {self.split}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _read(self, index: int) -> Packed:
        shard, local = self._locate(index)
        folder = shard_folders(self.path / self.split, shard)[0]
        name = f"{self.split}[{index}]"
        value = _get(folder, record_key(local), name, self._check_same)
        if value is None:
            raise UnreadableRecord(name, f"missing from {folder}")
        packed = without_checksum(value)
        if packed is None:
            raise UnreadableRecord(name, f"damaged in {folder} (checksum)")
        return Packed(packed, self._dtype)

    def _check_same(self) -> None:
        """Before a shard is opened: another store may be in this one's place by now, and its records would pass for ours.

        Raises:
            UserError: it is so.
        """
        if (now := _identity(self.path)) != self._seen:
            if read_meta(self.path) != self.meta:
                raise UserError(f"{self.path}: another store is in its place since this program started")
            self._seen = now


def record_key(index: int) -> bytes:
    return index.to_bytes(8, "big")


def shard_folders(folder: Path, number: int) -> tuple[Path, Path]:
    """Where the text records and the images of a shard are."""
    return folder / f"text-{number:05d}.lmdb", folder / f"image-{number:05d}.lmdb"


def _identity(path: Path) -> tuple | None:
    """What changes when another file takes the place of store.json, or it is written anew."""
    try:
        found = (path / "store.json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _get(folder: Path, key: bytes, name: str, before_opening: Callable[[], None]) -> bytes | None:
    try:
        with environment(folder, before_opening).begin() as txn:
            return txn.get(key)
    except (lmdb.Error, UserError) as error:
        raise UnreadableRecord(name, str(error)) from None


def answers_fingerprint(answers: Sequence[str]) -> str:
    """What tells an answer vocabulary, its order included, from another one: kept in store, checkpoint and export."""
    return hashlib.blake2b(json.dumps(list(answers), ensure_ascii=False).encode(), digest_size=8).hexdigest()
