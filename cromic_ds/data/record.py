"""One example in the store, as an object and as bytes.

Byte layout, little-endian: CRC32 of the rest; the header `_HEADER`; a uint16 length per comment; the answers' ids
(uint32) and soft scores (float32); the id and the image id (UTF-8); the tokens of the post and of each comment (uint16,
or uint32 for vocabularies of 65,536 tokens and more); and up to the end a JSON object with the texts and extras, which
training never parses.
"""

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cromic_ds.data.dataset import Texts, Tokens

MAX_KEY_BYTES = 511  # LMDB's limit, so ids and image ids cannot be longer

_CRC = struct.Struct("<I")
_HEADER = struct.Struct("<HHHIH")  # bytes of the id, bytes of the image id, post tokens, comments, answers

NO_ANSWERS = (np.empty(0, np.int32), np.empty(0, np.float32))


@dataclass(slots=True)
class Record:
    """One example to be stored."""

    id: str
    post: str = ""
    comments: list[str] = field(default_factory=list)
    post_tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))  # [CLS] … [SEP], or empty
    comment_tokens: list[np.ndarray] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)
    image_id: str | None = None  # None if it has no image
    answers: tuple[np.ndarray, np.ndarray] = NO_ANSWERS  # (K,) ids into the store's answer vocabulary, (K,) soft scores


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the type of stored token ids."""
    return np.dtype("<u2" if vocab_size < 65_536 else "<u4")


def with_checksum(value: bytes) -> bytes:
    """Return the value with its CRC32 in front."""
    return _CRC.pack(zlib.crc32(value)) + value


def without_checksum(value: bytes) -> bytes | None:
    """Undo `with_checksum`; None if the bytes have changed since."""
    if len(value) < _CRC.size or zlib.crc32(memoryview(value)[_CRC.size :]) != _CRC.unpack_from(value)[0]:
        return None
    return value[_CRC.size :]


def checksum(value: bytes) -> bytes:
    """Return the CRC32 of a value that `with_checksum` has returned."""
    return value[: _CRC.size]


def encode_record(record: Record, dtype: np.dtype) -> bytes:
    """Return the bytes of a record, checksum first; see `EncodedRecord` for the way back."""
    id, image_id = record.id.encode(), (record.image_id or "").encode()
    if max(len(id), len(image_id)) > MAX_KEY_BYTES:
        raise ValueError(f"{record.id[:40]}…: ids may have at most {MAX_KEY_BYTES} bytes")
    lengths = np.array([len(c) for c in record.comment_tokens], "<u2")
    answer_ids, answer_scores = record.answers
    sequences: Sequence[np.ndarray] = [record.post_tokens, *record.comment_tokens]
    texts = {"post": record.post, "comments": record.comments, "extras": record.extras}
    parts = (
        _HEADER.pack(len(id), len(image_id), len(record.post_tokens), len(lengths), len(answer_ids)),
        lengths.tobytes(),
        answer_ids.astype("<u4").tobytes(),
        answer_scores.astype("<f4").tobytes(),
        id,
        image_id,
        np.concatenate(sequences).astype(dtype).tobytes(),
        json.dumps(texts, ensure_ascii=False, separators=(",", ":")).encode(),
    )
    return with_checksum(b"".join(parts))


class EncodedRecord:
    """A stored record, given by its bytes without checksum and the type of its token ids, decoded only as far as needed."""

    def __init__(self, value: bytes, dtype: np.dtype):
        id_bytes, image_bytes, self._post_length, comments, self._n_answers = _HEADER.unpack_from(value)
        self._value, self._dtype = value, dtype
        self._lengths = np.frombuffer(value, "<u2", comments, _HEADER.size)
        self._answers_at = _HEADER.size + self._lengths.nbytes
        at = self._answers_at + 8 * self._n_answers
        self.id = value[at : at + id_bytes].decode()
        self._tokens_at = at + id_bytes + image_bytes
        self.image_id = value[at + id_bytes : self._tokens_at].decode()
        self._n_tokens = self._post_length + int(self._lengths.sum(dtype=np.int64))

    def tokens(self, classified: bool) -> Tokens:
        """Return the token ids, and the answers if `classified`: the store has an answer vocabulary."""
        flat = np.frombuffer(self._value, self._dtype, self._n_tokens, self._tokens_at).astype(np.int32)
        ends = np.cumsum(self._lengths, dtype=np.int64) + self._post_length
        tokens = Tokens(self.id, flat[: self._post_length], [flat[e - n : e] for e, n in zip(ends, self._lengths)])
        if classified:
            ids = np.frombuffer(self._value, "<u4", self._n_answers, self._answers_at)
            scores = np.frombuffer(self._value, "<f4", self._n_answers, self._answers_at + ids.nbytes)
            tokens.answer_ids, tokens.answer_scores = ids.astype(np.int32), scores.astype(np.float32)
        return tokens

    def texts(self) -> Texts:
        """Return the texts and extras."""
        texts = json.loads(self._value[self._tokens_at + self._n_tokens * self._dtype.itemsize :])
        return Texts(self.id, texts["post"], texts["comments"], texts["extras"])
