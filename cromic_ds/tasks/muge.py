"""MUGE, image captions of the E-Commerce IC task: ten Chinese captions per image.

IC_train.tsv, IC_valid.tsv, IC_test.tsv     `<image id><TAB><image in URL-safe base64>`
IC_train.jsonl, IC_valid.jsonl              {"image_id", "text": [ten]}
IC_test.jsonl                               {"image_id"}; if absent, captions of all images of IC_test.tsv are asked for
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cromic_ds.data.sources import ImageSource, TsvSource, tsv_key
from cromic_ds.files import read_lines
from cromic_ds.tasks.base import captioning
from cromic_ds.tasks.predictions import Form, image_id
from cromic_ds.tasks.reader import OfficialEntry, OfficialReader, caption_list, id_field, json_lines, parse_entries

_CAPTIONS_PER_IMAGE = 10
_FILES = {"train": "IC_train", "val": "IC_valid", "test": "IC_test"}


class MugeReader(OfficialReader):
    """Records without a post; the captions are the comments."""

    def needs(self) -> dict[str, list[Path]]:
        return {s: [self._images(s), *([] if s == "test" else [self._captions(s)])] for s in _FILES}

    def entries(self, split: str, work: Path) -> Iterator[OfficialEntry]:
        file = self._captions(split)
        if split != "test":
            yield from parse_entries(str(file), json_lines(file), _with_captions)
        elif file.is_file():
            yield from parse_entries(str(file), json_lines(file), _without_captions)
        else:
            file = self._images(split)
            keys = ((number, tsv_key(file, number, line)) for number, _, line in read_lines(file))
            items = ((number, {"image_id": key.decode(errors="replace")}) for number, key in keys)
            yield from parse_entries(str(file), items, _without_captions)

    def images(self, split: str, work: Path) -> ImageSource:
        return TsvSource(self._images(split), work / f"{_FILES[split]}.db")

    def _images(self, split: str) -> Path:
        return self.find(f"{_FILES[split]}.tsv")

    def _captions(self, split: str) -> Path:
        return self.find(f"{_FILES[split]}.jsonl")


def _without_captions(item: dict[str, Any]) -> OfficialEntry:
    id = id_field(item, "image_id")
    return OfficialEntry(id, image_id=id, image=id, extras={"image_id": id})


def _with_captions(item: dict[str, Any]) -> OfficialEntry:
    entry = _without_captions(item)
    entry.comments = caption_list(item.get("text"), _CAPTIONS_PER_IMAGE)
    return entry


# The official score is on characters, a run of letters or digits being one. The server takes lines of {"image_id", "text"}.
MUGE = captioning("muge", "MUGE", MugeReader, "char", Form("image_id", "text", image_id, lines=True), table_place=0)
