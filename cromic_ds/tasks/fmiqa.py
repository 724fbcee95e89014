"""FM-IQA: questions and answers in Chinese about images of COCO.

FM-IQA.json                                  {"train": [...], "val": [...]} of
                                             {"question_id", "image_id", "Question", "Answer"}
train2014/COCO_train2014_000000000009.jpg    images of COCO, twelve digits
val2014/COCO_val2014_000000000042.jpg
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cromic_ds.tasks.base import GeneratedText
from cromic_ds.tasks.predictions import Form, question_id
from cromic_ds.tasks.reader import Entry, FolderReader, coco_image, id_of, json_items, read_entries, text_of


class FmIqa(FolderReader):
    """An answer is generated: the question is the post, the answer its one comment."""

    def needs(self) -> dict[str, list[Path]]:
        return {split: [self._file, self.image_folder(split)] for split in ("train", "val")}

    def entries(self, split: str, work: Path) -> Iterator[Entry]:
        parse = partial(_entry, folder=f"{split}2014")
        yield from read_entries(f"{self._file}#{split}", json_items(self._file, f"{split}.item"), parse)

    def image_folder(self, split: str) -> Path:
        return self.find(f"{split}2014")

    @property
    def _file(self) -> Path:
        return self.find("FM-IQA.json")


def _entry(item: dict, folder: str) -> Entry:
    image_id, image = coco_image(item, folder)
    return Entry(
        id=id_of(item, "question_id"),
        image_id=image_id,
        image=image,
        post=text_of(item, "Question"),
        comments=[text_of(item, "Answer")],
        extras={"image_id": image_id},
    )


# Its published score, the PassRate, is a human Turing test (`cromic-ds rate`); what is computed here is none. There is no
# server: predictions are filed as the results of VQA v2.0 are.
FMIQA = GeneratedText(
    name="fmiqa",
    kind="answer",
    reads_text=True,
    tokenization="char",
    best_metric="cider",
    higher_is_better=True,
    max_new_tokens=25,
    form=Form("question_id", "answer", question_id, lines=False),
    exact_match=True,
)
