"""What the readers of official files share: where files are looked for, and how each entry is read or rejected."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ijson

from cromic_ds.data.reject_reasons import BAD_UTF8
from cromic_ds.data.sources import FolderSource, ImageSource
from cromic_ds.errors import UserError
from cromic_ds.files import read_lines
from cromic_ds.progress import ProgressBar
from cromic_ds.tasks.fields import BadEntry, any_id, id_field, text_field

_REPORT_EVERY = 1000  # entries


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
                raise BadEntry("not a JSON object")
            entry = parse(item)
        except BadEntry as error:
            entry = OfficialEntry(any_id(item), reason=str(error))
        entry.file, entry.number = file, number
        yield entry


def json_items(path: Path, prefix: str) -> Iterator[tuple[int, Any]]:
    """Yield the items of a list in a JSON file with their numbers, without reading the whole file.

    prefix: `item` for a file that is a list, `questions.item` for the list under that key. Raises UserError if the file is not
    JSON or has no such list.
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
                yield number, BadEntry("not JSON")
            if number % _REPORT_EVERY == 0:
                bar.update(offset)


def caption_entry(id: str, captions: list[str]) -> OfficialEntry:
    """Return the record of an image with its captions."""
    return OfficialEntry(id, image_id=id, image=id, comments=captions, extras={"image_id": id})


def coco_question(item: dict[str, Any], folder: str, key: str) -> OfficialEntry:
    """Return the record of a question, the text under `key`, about an image in a COCO folder such as `train2014`."""
    number = id_field(item, "image_id")
    if not (number.isascii() and number.isdigit()):
        raise BadEntry("image_id is not a number of COCO")
    image_id, image = str(int(number)), f"COCO_{folder}_{int(number):012d}"
    id, question = id_field(item, "question_id"), text_field(item, key)
    return OfficialEntry(id, image_id=image_id, image=image, post=question, extras={"image_id": image_id})
