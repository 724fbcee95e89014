"""The store: what `cromic-ds prepare` writes and training reads.

    STORE/store.json                 format version, tokenizer, settings, counts and a digest per shard
    STORE/tokenizer/                 Hub format
    STORE/rejects.jsonl              what preparation could not use
    STORE/<split>/text-00000.lmdb/   8-byte big-endian index within the shard -> text record
    STORE/<split>/image-00000.lmdb/  image id -> CRC32, encoded image

A text record is, little-endian: CRC32 of the rest; the header of `_HEADER`; a uint16 length per comment; the id and
the image id (UTF-8); the tokens of the post and of each comment (uint16, or uint32 for vocabularies of 65,536 and
more); and to its end a JSON object with what only people read (post, comments, extras), which training never parses.
Records that share an image lie in the same shard, which holds it once. For the same records in the same order, all
files are the same to the byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import numpy as np

from cromic_ds.data.dataset import Texts, Tokens, UnreadableRecord
from cromic_ds.data.environments import environment
from cromic_ds.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT_VERSION = 1
MAX_KEY_BYTES = 511  # LMDB's limit, so ids and image ids cannot be longer

_CRC = struct.Struct("<I")
_HEADER = struct.Struct("<HHHI")  # bytes of the id, bytes of the image id, post tokens, comments
_COMMIT_BYTES = 16 << 20


@dataclass(slots=True)
class Record:
    """One example to be stored. `image_id` None: it has no image."""

    id: str
    post: str = ""
    comments: list[str] = field(default_factory=list)
    post_tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))  # [CLS] … [SEP], or empty
    comment_tokens: list[np.ndarray] = field(default_factory=list)
    extras: dict = field(default_factory=dict)
    image_id: str | None = None


@dataclass(frozen=True)
class ShardInfo:
    """What store.json says of a shard."""

    records: int
    comments: int
    images: int
    digest: str  # of all records and images, in order


def is_store(path: str | Path) -> bool:
    return (Path(path) / "store.json").is_file()


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size < 65_536 else "<u4")


class ShardWriter:
    """Writes one shard, in constant memory. Nothing has its final name before `close`."""

    def __init__(self, folder: Path, number: int, dtype: np.dtype):
        self._targets = _shard_folders(folder, number)
        self._asides = [target.with_suffix(".tmp") for target in self._targets]
        for path in [*self._targets, *self._asides]:
            shutil.rmtree(path, ignore_errors=True)
        self._texts, self._images = (_Appender(path) for path in self._asides)
        self._dtype = dtype
        self._image_ids: set[str] = set()
        self._comments = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def __len__(self) -> int:
        return self._texts.count

    def has_image(self, image_id: str) -> bool:
        return image_id in self._image_ids

    def add(self, record: Record, image: bytes | None = None) -> None:
        """Append a record; `image` may be left out where this shard has `record.image_id` already."""
        if record.image_id is not None and record.image_id not in self._image_ids:
            if image is None:
                raise ValueError(f"{record.id}: the shard does not hold the image {record.image_id!r} yet")
            value = _CRC.pack(zlib.crc32(image)) + image
            self._image_ids.add(record.image_id)
            self._images.put(record.image_id.encode(), value)
            self._digest.update(value[: _CRC.size])
        value = _pack(record, self._dtype)
        self._texts.put(_key(self._texts.count), value)
        self._digest.update(value[: _CRC.size])
        self._comments += len(record.comment_tokens)

    def close(self) -> ShardInfo:
        """Flush to disk and move into place."""
        info = ShardInfo(self._texts.count, self._comments, self._images.count, self._digest.hexdigest())
        for writer in (self._texts, self._images):
            writer.close()
        for aside, target in zip(self._asides, self._targets):
            aside.rename(target)
        return info


class StoreWriter:
    """Writes a whole store in one process; as a context manager it leaves nothing behind when the body raises.

    Records that share an image have to come one after the other: a shard ends only where the image changes.
    """

    def __init__(
        self, out: str | Path, tokenizer: PreTrainedTokenizerFast, *, records_per_shard: int = 10_000, **about
    ):
        self.out = Path(out)
        self._work = partial_folder(self.out)
        refuse_existing(self.out)
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        self._tokenizer, self._about = tokenizer, about
        self._dtype = token_dtype(len(tokenizer))
        self._records_per_shard = records_per_shard
        self._open: dict[str, ShardWriter] = {}
        self._last_image: dict[str, str | None] = {}
        self._closed: dict[str, list[ShardInfo]] = {}

    def add(self, split: str, record: Record, image: bytes | None = None) -> None:
        """Append a record to a split; `image` as for ShardWriter.add."""
        writer = self._open.get(split)
        shared = record.image_id is not None and record.image_id == self._last_image.get(split)
        if writer is not None and len(writer) >= self._records_per_shard and not shared:
            self._closed[split].append(writer.close())
            writer = None
        if writer is None:
            number = len(self._closed.setdefault(split, []))
            writer = self._open[split] = ShardWriter(self._work / split, number, self._dtype)
        writer.add(record, image)
        self._last_image[split] = record.image_id

    def close(self) -> None:
        """Finish: the store appears under its name, complete."""
        for split, writer in self._open.items():
            self._closed[split].append(writer.close())
        self._open.clear()
        write_meta(self._work, self._tokenizer, self._closed, **self._about)
        self._work.rename(self.out)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            shutil.rmtree(self._work, ignore_errors=True)


def partial_folder(out: Path) -> Path:
    """Where a store grows before it gets its name."""
    return out.with_name(f"{out.name}.partial")


def refuse_existing(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out}: already exists; remove it or choose another --out")


def write_meta(folder: Path, tokenizer: PreTrainedTokenizerFast, splits: dict[str, list[ShardInfo]], **about) -> None:
    """The tokenizer and store.json, the latter last: with it the folder is a store."""
    from cromic_ds.data.tokenizer import tokenizer_fingerprint

    tokenizer.save_pretrained(folder / "tokenizer")
    meta = {
        "format": "cromic_ds store",
        "version": FORMAT_VERSION,
        "tokenizer": {"fingerprint": tokenizer_fingerprint(tokenizer), "vocab_size": len(tokenizer)},
        "token_bytes": token_dtype(len(tokenizer)).itemsize,
        **about,
        "splits": {
            split: {
                "records": sum(s.records for s in shards),
                "comments": sum(s.comments for s in shards),
                "images": sum(s.images for s in shards),
                "shards": [asdict(s) for s in shards],
            }
            for split, shards in sorted(splits.items())
        },
    }
    aside = folder / "store.json.tmp"
    with aside.open("w", encoding="utf-8") as file:
        json.dump(meta, file, ensure_ascii=False, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    aside.rename(folder / "store.json")


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
        meta = read_meta(path)
        if split not in meta["splits"]:
            known = ", ".join(meta["splits"])
            raise UserError(f"{path}: no split {split!r}{nearest(split, meta['splits'])}; it has {known}")
        shards = meta["splits"][split]["shards"]
        self.path, self.split, self.meta = Path(path), split, meta
        self.tokenizer_path = self.path / "tokenizer"
        identity = json.dumps([meta["tokenizer"]["fingerprint"], split, [s["digest"] for s in shards]])
        self.fingerprint = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        self._dtype = np.dtype(f"<u{meta['token_bytes']}")
        self._ends = list(accumulate(s["records"] for s in shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def tokens(self, index: int) -> Tokens:
        return self._read(index).tokens(self._dtype)

    def texts(self, index: int) -> Texts:
        return self._read(index).texts(self._dtype)

    def image(self, index: int) -> bytes | None:
        record = self._read(index)
        if not record.image_id:
            return None
        folder = _shard_folders(self.path / self.split, self._locate(index)[0])[1]
        value = _get(folder, record.image_id, record.id)
        if value is None:
            raise UnreadableRecord(record.id, f"its image is missing from {folder}")
        if zlib.crc32(memoryview(value)[_CRC.size :]) != _CRC.unpack_from(value)[0]:
            raise UnreadableRecord(record.id, f"its image is damaged in {folder} (checksum)")
        return value[_CRC.size :]

    def _locate(self, index: int) -> tuple[int, int]:
        """(shard, index within it)."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}, split {self.split}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _read(self, index: int) -> _Packed:
        shard, local = self._locate(index)
        folder = _shard_folders(self.path / self.split, shard)[0]
        name = f"{self.split}[{index}]"
        value = _get(folder, _key(local), name)
        if value is None:
            raise UnreadableRecord(name, f"missing from {folder}")
        if len(value) < _CRC.size or zlib.crc32(memoryview(value)[_CRC.size :]) != _CRC.unpack_from(value)[0]:
            raise UnreadableRecord(name, f"damaged in {folder} (checksum)")
        return _Packed(value)


class _Packed:
    """A text record's bytes, taken apart only as far as they are asked for."""

    def __init__(self, value: bytes):
        id_bytes, image_bytes, self.post_length, comments = _HEADER.unpack_from(value, _CRC.size)
        at = _CRC.size + _HEADER.size
        self.lengths = np.frombuffer(value, "<u2", comments, at)
        at += self.lengths.nbytes
        self.id = value[at : at + id_bytes].decode()
        self.image_id = value[at + id_bytes : at + id_bytes + image_bytes].decode()
        self._value, self._tokens_at = value, at + id_bytes + image_bytes

    def tokens(self, dtype: np.dtype) -> Tokens:
        flat = np.frombuffer(self._value, dtype, self._n_tokens, self._tokens_at).astype(np.int32)
        ends = np.cumsum(self.lengths, dtype=np.int64) + self.post_length
        return Tokens(self.id, flat[: self.post_length], [flat[e - n : e] for e, n in zip(ends, self.lengths)])

    def texts(self, dtype: np.dtype) -> Texts:
        texts = json.loads(self._value[self._tokens_at + self._n_tokens * dtype.itemsize :])
        return Texts(self.id, texts["post"], texts["comments"], texts["extras"])

    @property
    def _n_tokens(self) -> int:
        return self.post_length + int(self.lengths.sum(dtype=np.int64))


def _pack(record: Record, dtype: np.dtype) -> bytes:
    id, image_id = record.id.encode(), (record.image_id or "").encode()
    if max(len(id), len(image_id)) > MAX_KEY_BYTES:
        raise ValueError(f"{record.id[:40]}…: ids may have at most {MAX_KEY_BYTES} bytes")
    lengths = np.array([len(c) for c in record.comment_tokens], "<u2")
    sequences: Sequence[np.ndarray] = [record.post_tokens, *record.comment_tokens]
    texts = {"post": record.post, "comments": record.comments, "extras": record.extras}
    rest = b"".join(
        (
            _HEADER.pack(len(id), len(image_id), len(record.post_tokens), len(record.comment_tokens)),
            lengths.tobytes(),
            id,
            image_id,
            np.concatenate(sequences).astype(dtype).tobytes(),
            json.dumps(texts, ensure_ascii=False, separators=(",", ":")).encode(),
        )
    )
    return _CRC.pack(zlib.crc32(rest)) + rest


def _key(index: int) -> bytes:
    return index.to_bytes(8, "big")


def _shard_folders(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"text-{number:05d}.lmdb", folder / f"image-{number:05d}.lmdb"


def _get(folder: Path, key: bytes | str, name: str) -> bytes | None:
    try:
        with environment(folder).begin() as txn:
            return txn.get(key.encode() if isinstance(key, str) else key)
    except (lmdb.Error, UserError) as error:
        raise UnreadableRecord(name, str(error)) from None


class _Appender:
    """Puts pairs into a new LMDB environment, committing every few megabytes.

    The map starts small and doubles when it is full, so that the size written into the file, like everything else in
    it, follows from the content, and so that readers of many shards do not run out of address space.
    """

    def __init__(self, path: Path):
        path.mkdir(parents=True)
        self._env = lmdb.open(str(path), map_size=1 << 20, lock=False, sync=False, metasync=False)
        self._pending: list[tuple[bytes, bytes]] = []
        self._pending_bytes = 0
        self.count = 0

    def put(self, key: bytes, value: bytes) -> None:
        self._pending.append((key, value))
        self._pending_bytes += len(key) + len(value)
        self.count += 1
        if self._pending_bytes >= _COMMIT_BYTES:
            self._commit()

    def _commit(self) -> None:
        self._pending.sort()
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    for key, value in self._pending:
                        txn.put(key, value)
                break
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
        self._pending.clear()
        self._pending_bytes = 0

    def close(self) -> None:
        self._commit()
        self._env.sync(True)
        self._env.close()
