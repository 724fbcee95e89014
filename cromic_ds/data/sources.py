"""Sources of images by id (a folder of files, an LMDB environment, or a TSV of base64 lines) and of further fields by id."""

import base64
import binascii
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from cromic_ds.data.disk_table import DiskTable, new_table
from cromic_ds.data.images import BadImage
from cromic_ds.data.lmdb_cache import DATA, open_environment
from cromic_ds.data.reject_reasons import BAD_BASE64
from cromic_ds.errors import UserError
from cromic_ds.files import read_lines
from cromic_ds.progress import ProgressBar

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG", ".bmp", ".gif", ".tif", ".tiff")


class ImageSource(Protocol):
    """Encoded images by id. Picklable; opens its files lazily in each process."""

    def get(self, id: str) -> bytes | None:
        """Return the image of `id`, which is looked up in all its `spellings`; None if there is none. Raises BadImage."""
        ...


def open_source(path: str | Path, work: Path) -> ImageSource:
    """Open an image folder, LMDB or TSV. The index of a TSV's lines is made in `work`, unless it is there already."""
    path = Path(path)
    if (path / DATA).is_file():
        return LmdbSource(path)
    if path.is_dir():
        return FolderSource(path)
    if path.is_file():
        return TsvSource(path, work / "image_lines.db")
    raise UserError(f"{path}: no such image folder, LMDB or TSV file; give one as images")


def spellings(id: str) -> list[str]:
    """Return an id as it is, stripped, and with the one trailing space that the keys of the published files have."""
    stripped = id.strip()
    return list(dict.fromkeys((id, stripped, f"{stripped} ")))


class FolderSource:
    """Files named `<id>.<extension>`; ids with slashes are in subfolders."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._extensions = list(EXTENSIONS)

    def get(self, id: str) -> bytes | None:
        if id.startswith("/") or ".." in id.split("/") or "\0" in id:
            return None  # never read a file outside the folder
        for name in spellings(id):
            for extension in self._extensions:
                try:
                    found = (self.folder / f"{name}{extension}").read_bytes()
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as error:
                    if error.errno == errno.ENAMETOOLONG:
                        return None
                    raise BadImage(f"image file cannot be read ({error.strerror})") from error
                # Most corpora use one extension: try the last successful one first.
                self._extensions.remove(extension)
                self._extensions.insert(0, extension)
                return found
        return None


class LmdbSource:
    """An LMDB environment whose keys are the ids."""

    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, id: str) -> bytes | None:
        with open_environment(self.folder).begin() as txn:
            for name in spellings(id):
                if name and (found := txn.get(name.encode())) is not None:
                    return found
        return None


class TsvSource:
    """A file of lines `<id><TAB><base64>`."""

    def __init__(self, path: Path, index: Path):
        self.lines = IndexedLines(path, index, tsv_key)

    def get(self, id: str) -> bytes | None:
        for name in spellings(id):
            if (line := self.lines.find(name)) is not None:
                # some releases use the URL-safe alphabet
                encoded = line.partition(b"\t")[2].strip().translate(bytes.maketrans(b"-_", b"+/"))
                try:
                    return base64.b64decode(encoded, validate=True)
                except binascii.Error as error:
                    raise BadImage(BAD_BASE64) from error
        return None


class IndexedLines:
    """Random access by key to the lines of a file of any size; the first line of a key counts.

    The file `index` is made unless it is there. `key_of` returns the key of a line, given the file, its number and the line.
    """

    def __init__(self, path: Path, index: Path, key_of: Callable[[Path, int, bytes], bytes]):
        self.path, self._offsets = path, DiskTable(index)
        if index.exists():
            return
        bar = ProgressBar(path.name, path.stat().st_size, "bytes")
        with bar, new_table(index, "key BLOB PRIMARY KEY, offset INTEGER") as offsets:
            for number, offset, line in read_lines(path):
                offsets.insert(key_of(path, number, line), offset)
                if number % 1000 == 0:
                    bar.update(offset)

    def find(self, key: str) -> bytes | None:
        """Return the line of a key, None if there is none."""
        found = self._offsets.execute("SELECT offset FROM rows WHERE key = ?", key.encode()).fetchone()
        if found is None:
            return None
        with self.path.open("rb") as file:
            file.seek(found[0])
            return file.readline()


def tsv_key(path: Path, number: int, line: bytes) -> bytes:
    """Return the id at the beginning of line `number` of an image TSV."""
    key, tab, _ = line.partition(b"\t")
    if not tab:
        raise UserError(f"{path}:{number}: no TAB; an image TSV has lines of an id, a TAB and the image in base64")
    return key


class ExtrasSource:
    """A file of JSON lines `{"id": ..., ...}` whose other fields are stored with the record of that id."""

    def __init__(self, path: Path, work: Path):
        if not path.is_file():
            raise UserError(f"{path}: no such file; extras is a file of JSON lines")
        self.lines = IndexedLines(path, work / "extra_lines.db", _json_key)

    def get(self, id: str) -> dict[str, Any]:
        """Return the fields of a record, an empty dict if the file has none."""
        line = self.lines.find(id)
        return {k: v for k, v in json.loads(line).items() if k != "id"} if line is not None else {}


def _json_key(path: Path, number: int, line: bytes) -> bytes:
    try:
        return json.loads(line)["id"].encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f'{path}:{number}: not a JSON object with a string "id"') from None
