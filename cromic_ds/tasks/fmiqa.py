"""FM-IQA: questions and answers in Chinese about images of COCO.

FM-IQA.json                                  {"train": [...], "val": [...]} of
                                             {"question_id", "image_id", "Question", "Answer"}
train2014/COCO_train2014_000000000009.jpg    images of COCO, twelve digits
val2014/COCO_val2014_000000000042.jpg
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cromic_ds.tasks.base import GeneratedText
from cromic_ds.tasks.fields import text_field
from cromic_ds.tasks.predictions import Form, question_id
from cromic_ds.tasks.reader import FolderReader, OfficialEntry, coco_question, json_items, parse_entries


class FmIqaReader(FolderReader):
    """The question is the post, its answer the only comment."""

    def needs(self) -> dict[str, list[Path]]:
        return {split: [self._file, self.image_folder(split)] for split in ("train", "val")}

    def entries(self, split: str, work: Path) -> Iterator[OfficialEntry]:
        parse = partial(_entry, folder=f"{split}2014")
        yield from parse_entries(f"{self._file}#{split}", json_items(self._file, f"{split}.item"), parse)

    def image_folder(self, split: str) -> Path:
        return self.find(f"{split}2014")

    @property
    def _file(self) -> Path:
        return self.find("FM-IQA.json")


def _entry(item: dict[str, Any], folder: str) -> OfficialEntry:
    entry = coco_question(item, folder, "Question")
    entry.comments = [text_field(item, "Answer")]
    return entry


# The published score, the PassRate, is a human Turing test (`cromic-ds rate`), and so is the one in the published table; no
# automatic score is called that. There is no server: predictions are written in the form of VQA v2.0.
FMIQA = GeneratedText(
    name="fmiqa",
    title="FM-IQA",
    kind="answer",
    reader=FmIqaReader,
    reads_text=True,
    tokenization="char",
    exact_match=True,
    form=Form("question_id", "answer", question_id, lines=False),
    table_scores={"cider": "C", "bleu_4": "B@4", "exact_match": "EM"},
    table_note="FM-IQA: automatic scores (EM: answers equal to the reference). The PassRate of the literature is a human "
    "Turing test, which none of them can be compared with.",
    table_place=3,
)
