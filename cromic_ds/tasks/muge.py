"""MUGE, image captions of the E-Commerce IC task: ten in Chinese an image.

IC_train.tsv, IC_valid.tsv, IC_test.tsv     `<image id><TAB><image in URL-safe base64>`
IC_train.jsonl, IC_valid.jsonl              {"image_id", "text": [ten]}
IC_test.jsonl                               {"image_id"}; without it every image of IC_test.tsv is asked for
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cromic_ds.data.sources import ImageSource, TsvSource, tsv_key
from cromic_ds.files import read_lines
from cromic_ds.tasks.base import captioning
from cromic_ds.tasks.predictions import Form, image_id
from cromic_ds.tasks.reader import Entry, Reader, captions_of, id_of, json_lines, read_entries

CAPTIONS = 10
NAMES = {"train": "IC_train", "val": "IC_valid", "test": "IC_test"}


class Muge(Reader):
    """An image is described: no post, its captions are the comments."""

    max_comment_tokens = 72

    def needs(self) -> dict[str, list[Path]]:
        return {s: [self._images(s), *([] if s == "test" else [self._captions(s)])] for s in NAMES}

    def entries(self, split: str, work: Path) -> Iterator[Entry]:
        file = self._captions(split)
        if split != "test":
            yield from read_entries(str(file), json_lines(file), _described)
        elif file.is_file():
            yield from read_entries(str(file), json_lines(file), _undescribed)
        else:
            file = self._images(split)
            keys = ((number, tsv_key(file, number, line)) for number, _, line in read_lines(file))
            items = ((number, {"image_id": key.decode(errors="replace")}) for number, key in keys)
            yield from read_entries(str(file), items, _undescribed)

    def images(self, split: str, work: Path) -> ImageSource:
        return TsvSource(self._images(split), work / f"{NAMES[split]}.db")

    def _images(self, split: str) -> Path:
        return self.find(f"{NAMES[split]}.tsv")

    def _captions(self, split: str) -> Path:
        return self.find(f"{NAMES[split]}.jsonl")


def _undescribed(item: dict) -> Entry:
    id = id_of(item, "image_id")
    return Entry(id, image_id=id, image=id, extras={"image_id": id})


def _described(item: dict) -> Entry:
    entry = _undescribed(item)
    entry.comments = captions_of(item.get("text"), CAPTIONS)
    return entry


# Scored on single characters, letters and digits grouped; the server takes lines of {"image_id", "text"}.
MUGE = captioning("muge", "char", Form("image_id", "text", image_id, lines=True))
