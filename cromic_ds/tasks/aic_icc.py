"""AIC-ICC, the image captions of AI Challenger: five in Chinese an image.

    caption_train_annotations_20170902.json         [{"url", "image_id": "<name>.jpg", "caption": [five]}, ...]
    caption_train_images_20170902/<name>.jpg
    caption_validation_annotations_20170910.json
    caption_validation_images_20170910/
    caption_test_a_images_20180103/                 images alone; without it caption_test_b_images_20180103/

Also one level down, as the archives unpack (`ai_challenger_caption_train_20170902/` and so on).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cromic_ds.tasks.base import captioning
from cromic_ds.tasks.predictions import Form, image_id
from cromic_ds.tasks.reader import (
    Entry,
    FolderReader,
    caption_entry,
    captions_of,
    id_of,
    json_items,
    read_entries,
    without_extension,
)

CAPTIONS = 5
DATES = {"train": ("train", "20170902"), "val": ("validation", "20170910")}
TESTS = ("caption_test_a_images_20180103", "caption_test_b_images_20180103")


class AicIcc(FolderReader):
    """An image is described: no post, its captions are the comments."""

    max_comment_tokens = 72

    def needs(self) -> dict[str, list[Path]]:
        annotated = {split: [self._annotations(split), self.image_folder(split)] for split in DATES}
        return annotated | {"test": [self.image_folder("test")]}

    def entries(self, split: str, work: Path) -> Iterator[Entry]:
        if split == "test":
            folder = self.image_folder(split)
            names = sorted(path.name for path in folder.iterdir() if without_extension(path.name) != path.name)
            items = ((number, {"image_id": name}) for number, name in enumerate(names, 1))
            yield from read_entries(str(folder), items, lambda item: caption_entry(item["image_id"], []))
        else:
            file = self._annotations(split)
            yield from read_entries(str(file), json_items(file, "item"), _entry)

    def image_folder(self, split: str) -> Path:
        if split == "test":
            return next((path for path in map(self.find, TESTS) if path.exists()), self.root / TESTS[0])
        name, date = DATES[split]
        return self.find(f"caption_{name}_images_{date}")

    def _annotations(self, split: str) -> Path:
        name, date = DATES[split]
        return self.find(f"caption_{name}_annotations_{date}.json")


def _entry(item: dict) -> Entry:
    return caption_entry(id_of(item, "image_id"), captions_of(item.get("caption"), CAPTIONS))


# Scored on jieba's words without "。"; the server takes a list of {"image_id" without extension, "caption"}.
AIC_ICC = captioning("aic_icc", "jieba", Form("image_id", "caption", image_id, lines=False))
