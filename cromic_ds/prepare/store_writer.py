"""Writing a store: shard by shard, or all of it in one process. See data/store.py for the layout."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np

from cromic_ds.data.record import Record, checksum, encode_record, token_dtype, with_checksum
from cromic_ds.data.store import ANSWERS_FILE, FORMAT_VERSION, META_FILE, answers_fingerprint, record_key, shard_folders
from cromic_ds.errors import UserError
from cromic_ds.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_COMMIT_BYTES = 16 << 20


@dataclass(frozen=True)
class ShardInfo:
    """A shard as store.json describes it."""

    records: int
    comments: int
    images: int
    digest: str  # of all records and images, in order


class ShardWriter:
    """Writes one shard, in flat memory but for the image ids. No file has its final name before `close`."""

    def __init__(self, folder: Path, number: int, dtype: np.dtype):
        self._texts, self._images = (_Appender(path) for path in shard_folders(folder, number))
        self._dtype = dtype
        self._image_ids: set[str] = set()
        self._comments = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def __len__(self) -> int:
        return self._texts.count

    def has_image(self, image_id: str) -> bool:
        """Return whether the shard holds an image already."""
        return image_id in self._image_ids

    def add(self, record: Record, image: bytes | None = None) -> None:
        """Append a record; `image` may be left out if the shard has `record.image_id` already."""
        if record.image_id is not None and record.image_id not in self._image_ids:
            if image is None:
                raise ValueError(f"{record.id}: the shard does not hold the image {record.image_id!r} yet")
            value = with_checksum(image)
            self._image_ids.add(record.image_id)
            self._images.put(record.image_id.encode(), value)
            self._digest.update(checksum(value))
        value = encode_record(record, self._dtype)
        self._texts.put(record_key(self._texts.count), value)
        self._digest.update(checksum(value))
        self._comments += len(record.comment_tokens)

    def close(self) -> ShardInfo:
        """Flush the shard to disk and move it into place."""
        info = ShardInfo(self._texts.count, self._comments, self._images.count, self._digest.hexdigest())
        self._texts.close()
        self._images.close()
        return info


class StoreWriter:
    """Writes a whole store in one process. A context manager: the end of its block completes the store and moves it into place,
    and an exception removes everything.

    Records that share an image must come one after the other: a shard ends only where the image changes. `answers` is the
    vocabulary that the records' answers refer to, and `about` has further fields of store.json.
    """

    def __init__(
        self,
        out: str | Path,
        tokenizer: PreTrainedTokenizerFast,
        *,
        records_per_shard: int = 10_000,
        answers: list[str] | None = None,
        **about: Any,
    ):
        self.out = Path(out)
        self._work = partial_folder(self.out)
        refuse_existing(self.out)
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        self._tokenizer, self._answers, self._about = tokenizer, answers, about
        self._dtype = token_dtype(len(tokenizer))
        self._records_per_shard = records_per_shard
        self._open: dict[str, ShardWriter] = {}
        self._last_image: dict[str, str | None] = {}
        self._closed: dict[str, list[ShardInfo]] = {}

    def add(self, split: str, record: Record, image: bytes | None = None) -> None:
        """Append a record to a split; see `ShardWriter.add` for `image`."""
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

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is not None:
            shutil.rmtree(self._work, ignore_errors=True)
            return
        for split, writer in self._open.items():
            self._closed[split].append(writer.close())
        write_meta(self._work, self._tokenizer, self._closed, self._answers, **self._about)
        self._work.rename(self.out)


def partial_folder(out: Path) -> Path:
    """Return the folder in which a store is made before it gets its name."""
    return out.with_name(f"{out.name}.partial")


def refuse_existing(out: Path, option: str = "--out") -> None:
    """Raise UserError if there is something at the place of a new store."""
    if out.exists():
        raise UserError(f"{out}: already exists; remove it or choose another {option}")


def write_meta(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    splits: dict[str, list[ShardInfo]],
    answers: list[str] | None = None,
    **about: Any,
) -> None:
    """Write the tokenizer, the answer vocabulary if there is one, and last store.json, which makes the folder a store."""
    from cromic_ds.data.tokenizer import tokenizer_fingerprint

    tokenizer.save_pretrained(folder / "tokenizer")
    if answers is not None:
        _write_json(folder / ANSWERS_FILE, answers)
        about["answers"] = {"count": len(answers), "fingerprint": answers_fingerprint(answers)}
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
    _write_json(folder / META_FILE, meta)


def _write_json(path: Path, content: dict[str, Any] | list[str]) -> None:
    write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


class _Appender:
    """Writes pairs to a new LMDB environment, which gets its name in `close`, and commits every few megabytes.

    The map starts small and doubles when it is full. So the size in the file depends on the content alone, like everything
    else in it, and readers of many shards do not run out of address space.
    """

    def __init__(self, path: Path):
        self._path, self._aside = path, path.with_suffix(".tmp")
        for leftover in (self._path, self._aside):
            shutil.rmtree(leftover, ignore_errors=True)
        self._aside.mkdir(parents=True)
        self._env = lmdb.open(str(self._aside), map_size=1 << 20, lock=False, sync=False, metasync=False)
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
        self._aside.rename(self._path)
