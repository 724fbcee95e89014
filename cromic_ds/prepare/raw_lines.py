"""Raw pretraining lines: `<id> #EOS# <post> #EOS# <comment> #EOC# <comment> ...` in UTF-8."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cromic_ds.data import reject_reasons
from cromic_ds.data.sources import ImageSource
from cromic_ds.errors import UserError
from cromic_ds.files import read_lines
from cromic_ds.prepare.corpus import Corpus, Post, Scanned

MAX_ID_BYTES = 500


class BadLine(ValueError):
    """A line that cannot be used; the message is the reason, one of `data/reject_reasons.py`."""


def parse_line(line: bytes) -> Post:
    """Parse a line, with or without its line end. Empty comments are dropped. Raises BadLine.

    The image has the id as it is written, for image sources whose keys have a trailing space.
    """
    try:
        text = line.decode("utf-8").lstrip("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadLine(reject_reasons.BAD_UTF8) from error
    fields = text.split("#EOS#")
    id = fields[0].strip()
    if len(fields) < 3 or not id:
        raise BadLine(reject_reasons.MISSING_FIELDS)
    if len(fields) > 3:
        raise BadLine(reject_reasons.TOO_MANY_FIELDS)  # most likely two lines that lost the line end between them
    if len(id.encode()) > MAX_ID_BYTES:
        raise BadLine(reject_reasons.LONG_ID)
    if not (post := fields[1].strip()):
        raise BadLine(reject_reasons.EMPTY_POST)
    comments = [text for comment in fields[2].split("#EOC#") if (text := comment.strip())]
    if not comments:
        raise BadLine(reject_reasons.NO_COMMENTS)
    return Post(id, post, comments, image_id=id, image=fields[0].removesuffix(" "))


def format_line(id: str, post: str, comments: list[str]) -> str:
    """Return the line that `parse_line` reads, without line end."""
    return f"{id} #EOS# {post} #EOS# {' #EOC# '.join(comments)}"


class TextCorpus(Corpus):
    """Files of raw lines, and images from one source."""

    unit = "bytes"

    def __init__(self, files: list[str], images: ImageSource):
        for file in files:
            if not Path(file).is_file():
                raise UserError(f"{file}: no such text file")
            if files.count(file) > 1:
                raise UserError(f"{file}: given more than once")
        self.files, self.images = files, images
        self.splits = ["train", "val"]
        sizes = [Path(file).stat().st_size for file in files]
        self.size = sum(sizes)
        self._starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self._handles: dict[int, IO[bytes]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}

    def scan(self) -> Iterator[Scanned]:
        for file, path in enumerate(self.files):
            for number, offset, line in read_lines(path):
                try:
                    yield Scanned(file, number, offset, parse_line(line).id, "")
                except BadLine as error:
                    first_field = line[:1000].partition(b"#EOS#")[0].decode(errors="replace").strip()
                    yield Scanned(file, number, offset, first_field[:100], str(error))

    def progress(self, scanned: Scanned) -> int:
        return self._starts[scanned.file] + scanned.position

    def read(self, file: int, position: int) -> Post:
        if file not in self._handles:
            self._handles[file] = Path(self.files[file]).open("rb")  # noqa: SIM115 - stays open for the next line
        self._handles[file].seek(position)
        return parse_line(self._handles[file].readline())

    def image(self, file: int, post: Post) -> bytes | None:
        return self.images.get(post.image)
