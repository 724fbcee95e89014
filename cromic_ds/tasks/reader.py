"""What the readers of official files share: where files are looked for, and how each entry is read or rejected."""

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
class OfficialEntry:
    """One record of official files, or an entry that cannot be one and the `reason` for it."""

    id: str
    image_id: str = ""
    image: str = ""  # the image's name in its source
    post: str = ""
    comments: list[str] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    file: str = ""  # as rejects.jsonl names it
    number: int = 0  # of the line, or of the entry in its list, from 1


class OfficialReader(ABC):
    """The official files of a task below a folder. Picklable."""

    def __init__(self, root: Path):
        self.root = root
        self.splits: list[str] = []  # the splits to prepare

    def inputs(self) -> list[Path]:
        """Return all files and folders that are read."""
        return [*(path for split in self.splits for path in self.needs()[split]), *self.answer_files()]

    @abstractmethod
    def needs(self) -> dict[str, list[Path]]:
        """Return the files and folders of each split, whether they exist or not."""

    def answer_files(self) -> list[Path]:
        """Return the annotations that the answer vocabulary is built from; none where answers are not classified."""
        return []

    @abstractmethod
    def entries(self, split: str, work: Path) -> Iterator[OfficialEntry]:
        """Yield all entries of a split in the files' order. work: a folder for what does not fit into memory."""

    @abstractmethod
    def images(self, split: str, work: Path) -> ImageSource:
        """Return the source of the split's images."""

    def find(self, name: str) -> Path:
        """Return where `name` is: in the folder, or one level below it, as archives unpack."""
        path = self.root / name
        if path.exists():
            return path
        return next(iter(sorted(self.root.glob(f"*/{name}"))), path)


class FolderReader(OfficialReader):
    """A reader whose images are files in a folder."""

    @abstractmethod
    def image_folder(self, split: str) -> Path:
        """Return the folder of the split's images."""

    def images(self, split: str, work: Path) -> ImageSource:
        return FolderSource(self.image_folder(split))


def parse_entries(
    file: str, items: Iterable[tuple[int, Any]], parse: Callable[[dict[str, Any]], OfficialEntry]
) -> Iterator[OfficialEntry]:
    """Yield an entry for each of the numbered `items`. An item that is a BadEntry, or for which `parse` raises one, becomes an
    entry with the reason."""
    for number, item in items:
        try:
            if isinstance(item, BadEntry):
                raise item
            if not isinstance(item, dict):
                raise BadEntry(NOT_AN_OBJECT)
            entry = parse(item)
        except BadEntry as error:
            entry = OfficialEntry(any_id(item), reason=str(error))
        entry.file, entry.number = file, number
        yield entry


def json_items(path: Path, prefix: str) -> Iterator[tuple[int, Any]]:
    """Yield the items of a list in a JSON file with their numbers, without reading the whole file.

    prefix: `item` for a file that is a list, `questions.item` for the list under that key.

    Raises UserError for a file that is not JSON or has no such list.
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
    """Yield the values of a file of JSON lines with their line numbers; a BadEntry for a line that is not JSON."""
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


def text_field(item: dict[str, Any], key: str) -> str:
    """Return the text under `key` without surrounding whitespace."""
    return clean_text(item.get(key), key)


def clean_text(value: Any, name: str) -> str:
    """Return a text without surrounding whitespace. Raises BadEntry for anything but a text, and for an empty one."""
    if not (text := unicode_text(value, name).strip()):
        raise BadEntry(f"empty {name}")
    return text


def unicode_text(value: Any, name: str) -> str:
    """Return a text as it is. Raises BadEntry for anything else, and for half a surrogate pair, which JSON can hold."""
    if not isinstance(value, str):
        raise BadEntry(f"no {name}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadEntry(f"{name} is not valid Unicode") from None
    return value


def id_field(item: dict[str, Any], key: str) -> str:
    """Return the id under `key`, a whole number or a text."""
    value = item.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    id = clean_text(value, key)
    if len(id.encode()) > MAX_KEY_BYTES:
        raise BadEntry(f"{key} is too long")
    return id


def caption_list(value: Any, count: int) -> list[str]:
    """Return the captions of an image, of which there must be `count`, without the empty ones."""
    if not isinstance(value, list):
        raise BadEntry("no captions")
    if len(value) != count:
        raise BadEntry(f"{len(value)} captions instead of {count}")
    captions = [clean_text(text, "caption") for text in value if not (isinstance(text, str) and not text.strip())]
    if not captions:
        raise BadEntry("empty captions")
    return captions


def caption_entry(name: str, captions: list[str]) -> OfficialEntry:
    """Return the record of an image with its captions. The image's id is the name of its file without the extension."""
    id = without_extension(name)
    return OfficialEntry(id, image_id=id, image=id, comments=captions, extras={"image_id": id})


def without_extension(name: str) -> str:
    """Return the name of an image file without its extension."""
    return next((name.removesuffix(extension) for extension in EXTENSIONS if name.endswith(extension)), name)


def coco_image(item: dict[str, Any], folder: str) -> tuple[str, str]:
    """Return (image id, name of its file without extension in a COCO folder such as `train2014`)."""
    id = id_field(item, "image_id")
    if not (id.isascii() and id.isdigit()):
        raise BadEntry("image_id is not a number of COCO")
    return str(int(id)), f"COCO_{folder}_{int(id):012d}"


def any_id(item: Any) -> str:
    """Return an id that helps to find an unusable entry, or an empty string."""
    if isinstance(item, dict):
        for key in ("question_id", "image_id", "id"):
            if isinstance(item.get(key), int | str):
                return str(item[key])[:100].encode(errors="replace").decode()
    return ""
