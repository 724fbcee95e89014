"""MUGE, image captions of the E-Commerce IC task: ten Chinese captions per image.

IC_train.tsv, IC_valid.tsv, IC_test.tsv     `<image id><TAB><image in URL-safe base64>`
IC_train.jsonl, IC_valid.jsonl              {"image_id", "text": [ten]}
IC_test.jsonl                               {"image_id"}; if absent, captions of all images of IC_test.tsv are asked for
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cromic_ds.data.sources import ImageSource, TsvSource, tsv_key
from cromic_ds.files import read_lines
from cromic_ds.tasks.base import captioning
from cromic_ds.tasks.fields import caption_list, id_field
from cromic_ds.tasks.reader import OfficialEntry, OfficialReader, caption_entry, json_lines, parse_entries

_FILES = {"train": "IC_train", "val": "IC_valid", "test": "IC_test"}


class MugeReader(OfficialReader):
    """Records without a post; the captions are the comments."""

    def needs(self) -> dict[str, list[Path]]:
        return {s: [self._file(s, "tsv"), *([] if s == "test" else [self._file(s, "jsonl")])] for s in _FILES}

    def entries(self, split: str, work: Path) -> Iterator[OfficialEntry]:
        file = self._file(split, "jsonl")
        if split != "test" or file.is_file():
            yield from parse_entries(str(file), json_lines(file), partial(_entry, captioned=split != "test"))
        else:
            file = self._file(split, "tsv")
            keys = ((number, tsv_key(file, number, line)) for number, _, line in read_lines(file))
            items = ((number, {"image_id": key.decode(errors="replace")}) for number, key in keys)
            yield from parse_entries(str(file), items, partial(_entry, captioned=False))

    def images(self, split: str, work: Path) -> ImageSource:
        return TsvSource(self._file(split, "tsv"), work / f"{_FILES[split]}.db")

    def _file(self, split: str, extension: str) -> Path:
        return self.find(f"{_FILES[split]}.{extension}")


def _entry(item: dict[str, Any], captioned: bool) -> OfficialEntry:
    return caption_entry(id_field(item, "image_id"), caption_list(item.get("text"), count=10) if captioned else [])


# The official score is on characters, a run of letters or digits being one. The server takes lines of {"image_id", "text"}.
MUGE = captioning("muge", "MUGE", MugeReader, "char", text_key="text", lines=True, table_place=0)
