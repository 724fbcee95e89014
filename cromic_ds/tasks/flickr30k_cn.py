"""Flickr30k-CN: the images of Flickr30k with five captions each in segmented Chinese.

    flickr30kzhbbosontrain/ImageSets/flickr30kzhbbosontrain.txt            one image id per line
    flickr30kzhbbosontrain/TextData/seg.flickr30kzhbbosontrain.caption.txt
                                               `<image id>#zhb#<number> word word  word`, translated by machine
    flickr30kzhbbosonval/                      the same
    flickr30kzhmbosontest/                     `<image id>#zhm#<number> word:n ，:wd word:v`, translated by people
    flickr30k-images/<image id>.jpg

The captions are joined again: tags of words are dropped, two spaces, which mean that a punctuation mark was removed, become a
comma, and the words are joined without spaces. Some releases have "Jan" before "boson" in the names of the folders.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cromic_ds.data.disk_table import DiskGroups, disk_groups
from cromic_ds.data.reject_reasons import BAD_UTF8, DUPLICATE
from cromic_ds.files import read_lines
from cromic_ds.tasks.base import captioning
from cromic_ds.tasks.fields import caption_list, without_extension
from cromic_ds.tasks.reader import FolderReader, OfficialEntry, caption_entry, parse_entries

_SETS = {"train": "flickr30kzhb{}bosontrain", "val": "flickr30kzhb{}bosonval", "test": "flickr30kzhm{}bosontest"}

_CAPTION_LINE = re.compile(r"(?P<image>[^#\s]+)#\w+#(?P<number>\d+)(?:[ \t](?P<words>.*))?")
_TAG = re.compile(r":[A-Za-z]+$")


class Flickr30kCnReader(FolderReader):
    """Records without a post; the captions are the comments."""

    def needs(self) -> dict[str, list[Path]]:
        return {split: [*self._files(split), self.image_folder(split)] for split in _SETS}

    def entries(self, split: str, work: Path) -> Iterator[OfficialEntry]:
        ids, captions_file = self._files(split)
        with disk_groups(work / "captions.db") as captions:
            for id, caption in captions.fill(map(_keyed, read_lines(captions_file))):
                yield OfficialEntry(id, reason=DUPLICATE, file=str(captions_file), number=caption["line"])
            named = ((n, without_extension(line.decode(errors="replace").strip())) for n, _, line in read_lines(ids))
            items = ((number, {"image_id": id}) for number, id in named if id)
            yield from parse_entries(str(ids), items, lambda item: _entry(item["image_id"], captions))
            for id, caption in captions.unused():
                reason = caption.get("reason", f"image is not in {ids.name}")
                yield OfficialEntry(id, reason=reason, file=str(captions_file), number=caption["line"])

    def image_folder(self, split: str) -> Path:
        return self.find("flickr30k-images")

    def _files(self, split: str) -> list[Path]:
        """Return the file of the image ids and the file of the captions."""
        usual, other = (self.find(_SETS[split].format(name)) for name in ("", "Jan"))
        folder = other if other.exists() and not usual.exists() else usual
        return [folder / "ImageSets" / f"{folder.name}.txt", folder / "TextData" / f"seg.{folder.name}.caption.txt"]


def join_words(words: str) -> str:
    """Return a caption as people write it, from its words separated by spaces, with or without tags."""
    parts = ("".join(_TAG.sub("", word) for word in part.split()) for part in words.split("  "))
    return "，".join(part for part in parts if part)


def _keyed(numbered_line: tuple[int, int, bytes]) -> tuple[str, int, dict[str, Any]]:
    """Return the image's id, the caption's number, and the caption or the reason why the line has none."""
    line, _, content = numbered_line
    try:
        match = _CAPTION_LINE.fullmatch(content.decode("utf-8-sig" if line == 1 else "utf-8").rstrip("\r\n"))
    except UnicodeDecodeError:
        return "", line, {"line": line, "reason": BAD_UTF8}
    if not match:
        return "", line, {"line": line, "reason": "not <image id>#<language>#<number> <words>"}
    caption = join_words(match["words"] or "")
    return without_extension(match["image"]), int(match["number"]), {"line": line, "caption": caption}


def _entry(id: str, captions: DiskGroups) -> OfficialEntry:
    return caption_entry(id, caption_list([caption["caption"] for caption in captions.get(id)], count=5))


# Scored on characters here; publications also use words (--tokenization jieba). There is no server, so the form is ours.
FLICKR30K_CN = captioning(
    "flickr30k_cn", "Flickr30k-CN", Flickr30kCnReader, "char", text_key="caption", lines=True, table_place=2
)
