"""What the readers of official files have in common: where files are looked for, and what becomes of each entry."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ijson

from cromic_ds.data.record import MAX_KEY_BYTES
from cromic_ds.data.reject_reasons import BAD_UTF8
from cromic_ds.data.sources import EXTENSIONS, FolderSource, ImageSource
from cromic_ds.errors import UserError
from cromic_ds.files import read_lines
from cromic_ds.progress import ProgressBar

NOT_JSON = "not JSON"
NOT_AN_OBJECT = "not a JSON object"

_REPORT_EVERY = 1000  # entries


class BadEntry(ValueError):
    """An entry that cannot be used; the text is the reason."""


@dataclass(slots=True)
class Entry:
    """One record as official files give it, or with a `reason` what cannot be one."""

    id: str
    image_id: str = ""
    image: str = ""  # what the image source knows it by
    post: str = ""
    comments: list[str] = field(default_factory=list)
    extras: dict = field(default_factory=dict)
    reason: str = ""
    file: str = ""  # as rejects.jsonl names it
    number: int = 0  # of the line, or of the entry in its list, from 1


class Reader(ABC):
    """The official files of a task below a folder. Picklable."""

    max_comment_tokens = 25
    """Longest stored answer or caption, unless the settings say otherwise."""
    classified = False
    """Whether answers are of a vocabulary."""

    def __init__(self, root: Path):
        self.root = root
        self.splits: list[str] = []  # those that are wanted

    def inputs(self) -> list[Path]:
        """The files and folders that are read."""
        return [*(path for split in self.splits for path in self.needs()[split]), *self.answer_files()]

    @abstractmethod
    def needs(self) -> dict[str, list[Path]]:
        """The files and folders of each split, whether they are there or not."""

    def answer_files(self) -> list[Path]:
        """The annotations that the answer vocabulary comes from; none where answers are not classified."""
        return []

    @abstractmethod
    def entries(self, split: str, work: Path) -> Iterator[Entry]:
        """All entries of a split in the files' order. `work`: a folder for what does not fit into memory."""

    @abstractmethod
    def images(self, split: str, work: Path) -> ImageSource: ...

    def find(self, name: str) -> Path:
        """Where `name` is: in the folder, or one level further down, as archives unpack."""
        path = self.root / name
        if path.exists():
            return path
        return next(iter(sorted(self.root.glob(f"*/{name}"))), path)


class FolderReader(Reader):
    """A reader whose images are files."""

    @abstractmethod
    def image_folder(self, split: str) -> Path: ...

    def images(self, split: str, work: Path) -> ImageSource:
        return FolderSource(self.image_folder(split))


def read_entries(file: str, items: Iterable[tuple[int, Any]], parse: Callable[[dict], Entry]) -> Iterator[Entry]:
    """An entry for each of the numbered `items`. An item that is a BadEntry, or makes `parse` raise one, is listed with
    its reason."""
    for number, item in items:
        try:
            if isinstance(item, BadEntry):
                raise item
            if not isinstance(item, dict):
                raise BadEntry(NOT_AN_OBJECT)
            entry = parse(item)
        except BadEntry as error:
            entry = Entry(any_id(item), reason=str(error))
        entry.file, entry.number = file, number
        yield entry


def json_items(path: Path, prefix: str) -> Iterator[tuple[int, Any]]:
    """The items of a list in a JSON file with their numbers, one at a time. `prefix`: `item` for a file that is a list,
    `questions.item` for the list under that key.

    Raises UserError for a file that is not JSON, or has no such list.
    """
    number = 0
    with path.open("rb") as file, ProgressBar(path.name, path.stat().st_size, "bytes") as bar:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        try:
            for number, item in enumerate(ijson.items(file, prefix, use_float=True), 1):
                yield number, item
                if number % _REPORT_EVERY == 0:
                    bar.update(file.tell())
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: not JSON after entry {number} ({reason}); unpack or download it again") from None
    if not number:
        where = f"no list {prefix.split('.')[0]!r}" if "." in prefix else "no list"
        raise UserError(f"{path}: {where}, or an empty one; take the file that the owners distribute")


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The objects of a file of JSON lines with their line numbers; a BadEntry for a line that is none."""
    with ProgressBar(path.name, path.stat().st_size, "bytes") as bar:
        for number, offset, line in read_lines(path):
            try:
                yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError:
                yield number, BadEntry(BAD_UTF8)
            except ValueError:
                yield number, BadEntry(NOT_JSON)
            if number % _REPORT_EVERY == 0:
                bar.update(offset)


def text_of(item: dict, key: str) -> str:
    """The text under `key` without blanks around it."""
    return clean_text(item.get(key), key)


def clean_text(value: Any, name: str) -> str:
    if not (text := unicode_text(value, name).strip()):
        raise BadEntry(f"empty {name}")
    return text


def unicode_text(value: Any, name: str) -> str:
    """A text as it is. JSON can also hold halves of characters, which no file can."""
    if not isinstance(value, str):
        raise BadEntry(f"no {name}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadEntry(f"{name} is not valid Unicode") from None
    return value


def id_of(item: dict, key: str) -> str:
    """The id under `key`, a whole number or a text."""
    value = item.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    id = clean_text(value, key)
    if len(id.encode()) > MAX_KEY_BYTES:
        raise BadEntry(f"{key} is too long")
    return id


def captions_of(value: Any, count: int) -> list[str]:
    """The `count` captions of an image, less blank ones."""
    if not isinstance(value, list):
        raise BadEntry("no captions")
    if len(value) != count:
        raise BadEntry(f"{len(value)} captions instead of {count}")
    captions = [clean_text(text, "caption") for text in value if not (isinstance(text, str) and not text.strip())]
    if not captions:
        raise BadEntry("empty captions")
    return captions


def caption_entry(name: str, captions: list[str]) -> Entry:
    """The record of an image with its captions; the image's id is its file's name without extension."""
    id = without_extension(name)
    return Entry(id, image_id=id, image=id, comments=captions, extras={"image_id": id})


def without_extension(name: str) -> str:
    return next((name.removesuffix(extension) for extension in EXTENSIONS if name.endswith(extension)), name)


def coco_image(item: dict, folder: str) -> tuple[str, str]:
    """(image id, name of its file without extension in a COCO folder such as `train2014`)."""
    id = id_of(item, "image_id")
    if not (id.isascii() and id.isdigit()):
        raise BadEntry("image_id is not a number of COCO")
    return str(int(id)), f"COCO_{folder}_{int(id):012d}"


def any_id(item: Any) -> str:
    """What an unusable entry is best called by."""
    if isinstance(item, dict):
        for key in ("question_id", "image_id", "id"):
            if isinstance(item.get(key), int | str):
                return str(item[key])[:100].encode(errors="replace").decode()
    return ""
