"""Where preparation finds images by id: a folder of files, an LMDB environment, or a TSV of base64 lines."""

from __future__ import annotations

import base64
import binascii
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cromic_ds.data.hash_index import HashIndex, HashIndexWriter
from cromic_ds.data.images import BadImage
from cromic_ds.data.lmdb_cache import environment
from cromic_ds.errors import UserError
from cromic_ds.files import read_lines
from cromic_ds.progress import ProgressBar

BAD_BASE64 = "broken base64"

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG", ".bmp", ".gif", ".tif", ".tiff")


class ImageSource(Protocol):
    """Encoded images by id. Picklable; opens its files lazily in each process."""

    def get(self, id: str) -> bytes | None:
        """The image of `id`, spelled exactly so or else without or with a trailing blank. Raises BadImage."""
        ...


def open_source(path: str | Path, work: Path) -> ImageSource:
    """The source that `path` is. A TSV gets an index of its lines in `work`, which is used again if it is there."""
    path = Path(path)
    if (path / "data.mdb").is_file():
        return LmdbSource(path)
    if path.is_dir():
        return FolderSource(path)
    if path.is_file():
        return TsvSource(path, work / "image_lines")
    raise UserError(f"{path}: no such image folder, LMDB or TSV file; give one as images")


def spellings(id: str) -> list[str]:
    """An id as it is, stripped, and with the one trailing blank that keys of the published files carry."""
    stripped = id.strip()
    return list(dict.fromkeys((id, stripped, f"{stripped} ")))


class FolderSource:
    """Files named `<id>.<extension>`; ids with slashes lie in folders below."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._extensions = list(EXTENSIONS)

    def get(self, id: str) -> bytes | None:
        if id.startswith("/") or ".." in id.split("/") or "\0" in id:
            return None  # never a file outside the folder
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
    """Keys are the ids."""

    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, id: str) -> bytes | None:
        with environment(self.folder).begin() as txn:
            for name in spellings(id):
                if name and (found := txn.get(name.encode())) is not None:
                    return found
        return None


class TsvSource:
    """Lines `<id><TAB><base64>`, found by byte offset and read one at a time."""

    def __init__(self, path: Path, index_folder: Path):
        self.lines = IndexedLines(path, index_folder, tsv_key)

    def get(self, id: str) -> bytes | None:
        for name in spellings(id):
            if (line := self.lines.find(name)) is not None:
                encoded = line.partition(b"\t")[2].strip().translate(_STANDARD_ALPHABET)
                try:
                    return base64.b64decode(encoded, validate=True)
                except binascii.Error as error:
                    raise BadImage(BAD_BASE64) from error
        return None


class IndexedLines:
    """Random access by key to the lines of a file of any size."""

    def __init__(self, path: Path, index_folder: Path, key_of: Callable[[Path, int, bytes], bytes]):
        self.path = path
        if index_folder.is_dir():
            self._index = HashIndex(index_folder)
        else:
            size = path.stat().st_size
            writer = HashIndexWriter(index_folder, size)
            with ProgressBar(path.name, size, "bytes") as bar:
                for number, offset, line in read_lines(path):
                    writer.add(key_of(path, number, line), offset)
                    if number % 1000 == 0:
                        bar.update(offset)
            self._index = writer.close()

    def find(self, key: str) -> bytes | None:
        offset = self._index.find(key.encode())
        if offset is None:
            return None
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.readline()


_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")  # some releases use the URL-safe one


def tsv_key(path: Path, number: int, line: bytes) -> bytes:
    """The id that line `number` of an image TSV begins with."""
    key, tab, _ = line.partition(b"\t")
    if not tab:
        raise UserError(f"{path}:{number}: no TAB; an image TSV has lines of an id, a TAB and the image in base64")
    return key
