"""AIC-ICC, the image captions of AI Challenger: five Chinese captions per image.

    caption_train_annotations_20170902.json         [{"url", "image_id": "<name>.jpg", "caption": [five]}, ...]
    caption_train_images_20170902/<name>.jpg
    caption_validation_annotations_20170910.json
    caption_validation_images_20170910/
    caption_test_a_images_20180103/                 images only; if absent, caption_test_b_images_20180103/

The files may also be one level down, as the archives unpack (`ai_challenger_caption_train_20170902/` and so on).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cromic_ds.tasks.base import captioning
from cromic_ds.tasks.fields import caption_list, id_field, without_extension
from cromic_ds.tasks.reader import FolderReader, OfficialEntry, caption_entry, json_items, parse_entries

_DATES = {"train": ("train", "20170902"), "val": ("validation", "20170910")}
_TEST_FOLDERS = ("caption_test_a_images_20180103", "caption_test_b_images_20180103")


class AicIccReader(FolderReader):
    """Records without a post; the captions are the comments."""

    def needs(self) -> dict[str, list[Path]]:
        annotated = {split: [self._annotations(split), self.image_folder(split)] for split in _DATES}
        return annotated | {"test": [self.image_folder("test")]}

    def entries(self, split: str, work: Path) -> Iterator[OfficialEntry]:
        if split == "test":
            folder = self.image_folder(split)
            names = sorted(path.name for path in folder.iterdir() if without_extension(path.name) != path.name)
            items = ((number, {"image_id": name}) for number, name in enumerate(names, 1))
            yield from parse_entries(
                str(folder), items, lambda item: caption_entry(without_extension(item["image_id"]), [])
            )
        else:
            file = self._annotations(split)
            yield from parse_entries(str(file), json_items(file, "item"), _entry)

    def image_folder(self, split: str) -> Path:
        if split == "test":
            return next((path for path in map(self.find, _TEST_FOLDERS) if path.exists()), self.root / _TEST_FOLDERS[0])
        name, date = _DATES[split]
        return self.find(f"caption_{name}_images_{date}")

    def _annotations(self, split: str) -> Path:
        name, date = _DATES[split]
        return self.find(f"caption_{name}_annotations_{date}.json")


def _entry(item: dict[str, Any]) -> OfficialEntry:
    return caption_entry(without_extension(id_field(item, "image_id")), caption_list(item.get("caption"), count=5))


# The official score is on jieba's words without "。". The server takes a list of {"image_id" without extension, "caption"}.
AIC_ICC = captioning("aic_icc", "AIC-ICC", AicIccReader, "jieba", text_key="caption", lines=False, table_place=1)
