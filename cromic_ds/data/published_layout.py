"""The layout of the published data: `<name>.pt` with token ids, and images in `<name>_image_lmdb`.

The `.pt` file holds `all_did` (a list of ids), `did2post` and `did2cmts` (in some files `id2post` and `id2cmt`):
token ids `[CLS] … [SEP]`, padded with 0. Ids may have a trailing space in the file, in the images' keys, or in both.
The tokenizer is a `vocab.txt` or a `tokenizer` folder beside the file if there is one, else bert-base-chinese.

A folder may hold several such pairs; the names are then the splits. A folder with one pair gives it as every split.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np

from cromic_ds.data.dataset import Texts, Tokens, UnreadableRecord
from cromic_ds.data.lmdb_cache import open_environment
from cromic_ds.data.reject_reasons import EMPTY_POST, NO_COMMENTS
from cromic_ds.data.sources import LmdbSource
from cromic_ds.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_KEYS = (("did2post", "id2post"), ("did2cmts", "id2cmt"))
_IMAGES = "_image_lmdb"


def holds_published(path: str | Path) -> bool:
    """Return whether `path` is a folder with a `.pt` file and an image LMDB, or a `.pt` file."""
    path = Path(path)
    if path.is_file():
        return path.suffix == ".pt"
    return path.is_dir() and any(path.glob("*.pt")) and any(path.glob(f"*{_IMAGES}"))


def published_names(path: str | Path) -> list[str]:
    """Return the names of a folder's complete pairs; for a `.pt` file, its name."""
    path = Path(path)
    if path.is_file():
        return [path.stem]
    files = sorted(path.glob("*.pt"))
    paired = [file.stem for file in files if (path / f"{file.stem}{_IMAGES}").is_dir()]
    return paired or [file.stem for file in files]


class PublishedDataset:
    """One published file as a `Dataset`. Its format requires that it is read whole; it is kept as flat arrays."""

    task: str | None = None
    answers: list[str] | None = None
    answers_fingerprint: str | None = None

    def __init__(self, path: str | Path, split: str = "train"):
        self.split = split
        self.file, images = _locate(Path(path), split)
        self.images = LmdbSource(images)
        self.single_file = len(published_names(path)) == 1  # if so, train and val are the same examples
        beside = (self.file.parent / "tokenizer", self.file.parent / "vocab.txt")
        self.tokenizer_path = next((path for path in beside if path.exists()), Path("bert-base-chinese"))
        self._load()
        self._check_images()

    def __len__(self) -> int:
        return len(self._ids)

    def id(self, index: int) -> str:
        """Return an id as the file spells it, perhaps with a trailing space."""
        return self._ids[index].decode()

    def tokens(self, index: int) -> Tokens:
        id = self.id(index)
        start, end = self._post_ends[index : index + 2]
        first, last = self._comment_rows[index : index + 2]
        if start == end or first == last:
            raise UnreadableRecord(id.strip(), EMPTY_POST if start == end else NO_COMMENTS)
        ends = self._comment_ends[first : last + 1]
        comments = [self._comments[a:b].astype(np.int32) for a, b in pairwise(ends)]
        return Tokens(id.strip(), self._posts[start:end].astype(np.int32), comments)

    def image(self, index: int) -> bytes | None:
        id = self.id(index)
        try:
            found = self.images.get(id)
        except (lmdb.Error, UserError) as error:
            raise UnreadableRecord(id.strip(), str(error)) from None
        if found is None:
            raise UnreadableRecord(id.strip(), f"its image is missing from {self.images.folder}")
        return found

    def texts(self, index: int) -> Texts:
        from cromic_ds.data.tokenizer import decode_text

        tokens, tokenizer = self.tokens(index), _tokenizer(self.tokenizer_path)
        comments = [decode_text(tokenizer, comment) for comment in tokens.comments]
        return Texts(tokens.id, decode_text(tokenizer, tokens.post), comments)

    def _load(self) -> None:
        content = _read(self.file)
        ids = content["all_did"]
        posts, comments = (_by_id(content, keys, self.file) for keys in _KEYS)
        per_post = [comments.get(str(id).strip(), ()) for id in ids]
        self._ids = np.array([str(id).encode() for id in ids], dtype=np.bytes_)
        try:
            self._posts, self._post_ends = _flatten(posts.get(str(id).strip(), ()) for id in ids)
            self._comments, self._comment_ends = _flatten(comment for group in per_post for comment in group)
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{self.file}: posts and comments must be lists of token ids; this file has others"
            ) from None
        self._comment_rows = np.concatenate([[0], np.cumsum([len(group) for group in per_post])]).astype(np.int64)
        digest = hashlib.blake2b(digest_size=8)
        for array in (self._ids, self._posts, self._post_ends, self._comments, self._comment_ends, self._comment_rows):
            digest.update(array.tobytes())
        self.fingerprint = digest.hexdigest()

    def _check_images(self) -> None:
        """Raise UserError with the likely cause if none of the ids has an image."""
        checked = range(0, len(self), max(1, len(self) // 1000))  # about 1,000 of them
        if not len(self) or any(self.images.get(self.id(i)) is not None for i in checked):
            return
        id = self.id(0).strip()
        with open_environment(self.images.folder).begin() as txn:
            first = islice(txn.cursor().iternext(values=False), 10_000)
            keys = [bytes(key).decode(errors="replace").strip() for key in first]
        longer = next((key for key in keys if key.endswith(id) and key != id), None)
        if longer:
            cut = len(longer) - len(id)
            raise UserError(
                f"{self.file}: its ids are not in {self.images.folder.name}, "
                f"because the published converter cut off their first {cut} characters ({id!r} is {longer!r} there); "
                "use the .pt file that has the whole ids, or convert the raw lines with `cromic-ds prepare --text`"
            )
        example = f"for example {id!r}; the images have {keys[0]!r}" if keys else "it is empty"
        raise UserError(
            f"{self.file}: none of its ids is in {self.images.folder.name} ({example}); give the images that belong to it"
        )


@lru_cache(maxsize=4)
def _tokenizer(path: Path) -> PreTrainedTokenizerFast:
    from cromic_ds.data.tokenizer import load_tokenizer

    return load_tokenizer(path)


def _locate(path: Path, split: str) -> tuple[Path, Path]:
    """Return the `.pt` file and the image LMDB of a split."""
    folder = path.parent if path.is_file() else path
    names = published_names(path)
    in_folder = path.is_dir() and (path / f"{split}.pt").is_file()
    if not in_folder and len(names) != 1:
        raise UserError(f"{path}: no split {split!r}{nearest(split, names)}; its files are {', '.join(names)}")
    name = split if in_folder else names[0]
    images = folder / f"{name}{_IMAGES}"
    others = sorted(folder.glob(f"*{_IMAGES}"))
    if not images.is_dir() and len(others) == 1:
        images = others[0]
    if not images.is_dir():
        raise UserError(f"{folder / name}.pt: its images are missing, there is no {images.name} beside it")
    return folder / f"{name}.pt", images


def _read(file: Path) -> dict[str, Any]:
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"{file}: cannot be read as plain data ({reason}); it must hold only lists, dicts and numbers"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("all_did"), list):
        found = ", ".join(map(str, islice(content, 5))) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{file}: not in the published layout, it has no list all_did (found {found})")
    return content


def _by_id(content: dict[str, Any], keys: tuple[str, str], file: Path) -> dict:
    """Return posts or comments by stripped id. Where two ids differ only in whitespace, the one without any counts."""
    values = next((content[key] for key in keys if isinstance(content.get(key), dict)), None)
    if values is None:
        raise UserError(f"{file}: not in the published layout, it has neither {' nor '.join(keys)}")
    stripped = {str(id).strip(): value for id, value in values.items()}
    return stripped | {id: value for id, value in values.items() if isinstance(id, str) and id == id.strip()}


def _flatten(rows: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate rows without their padding; also return the n + 1 positions at which they begin and end."""
    parts, ends = [], [0]
    for row in rows:
        array = np.asarray(row, dtype=np.int64)
        if array.ndim != 1:
            raise ValueError(f"shape {array.shape}")
        length = int(np.count_nonzero(array))  # 0 is used for padding only
        parts.append(array[:length].astype(np.uint32))
        ends.append(ends[-1] + length)
    flat = np.concatenate(parts) if parts else np.empty(0, np.uint32)
    return flat.astype(np.uint16) if not len(flat) or flat.max() < 65_536 else flat, np.array(ends, np.int64)
