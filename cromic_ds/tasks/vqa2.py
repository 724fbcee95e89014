"""VQA v2.0: questions about images of COCO with the answers of ten people each.

    v2_OpenEnded_mscoco_train2014_questions.json     {"questions": [{"image_id", "question", "question_id"}], ...}
                        val2014, test2015, test-dev2015
    v2_mscoco_train2014_annotations.json, val2014    {"annotations": [{"question_id", "image_id", "question_type",
                                                     "answer_type", "multiple_choice_answer",
                                                     "answers": [{"answer", ...}, ten of them]}], ...}
    train2014/COCO_train2014_000000000009.jpg, val2014/, test2015/

The questions of test-dev2015 are some of those of test2015, and about its images. Nobody has the tests' annotations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cromic_ds.data.dataset import Texts
from cromic_ds.data.disk_table import disk_groups
from cromic_ds.data.reject_reasons import DUPLICATE
from cromic_ds.errors import UserError
from cromic_ds.metrics.measured import Measured
from cromic_ds.metrics.vqa import WHOLE_ANSWERS, measure_answers
from cromic_ds.tasks.base import Task
from cromic_ds.tasks.predictions import Form, question_id
from cromic_ds.tasks.reader import (
    BadEntry,
    Entry,
    FolderReader,
    any_id,
    coco_image,
    id_of,
    json_items,
    read_entries,
    text_of,
    unicode_text,
)

ANSWERS = 10
SUBSETS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}


class Vqa2(FolderReader):
    """An answer is one of a vocabulary. The one that most people gave is the comment; all ten are in the extras."""

    classified = True

    def needs(self) -> dict[str, list[Path]]:
        return {s: [self._questions(s), *self._annotations(s), self.image_folder(s)] for s in SUBSETS}

    def answer_files(self) -> list[Path]:
        return [*self._annotations("train"), *self._annotations("val")]

    def entries(self, split: str, work: Path) -> Iterator[Entry]:
        file = self._questions(split)
        parse = partial(_question, folder=self.image_folder(split).name)
        questions = read_entries(str(file), json_items(file, "questions.item"), parse)
        if not self._annotations(split):
            yield from questions
            return
        [file] = self._annotations(split)
        with disk_groups(work / "annotations.db") as annotations:
            for id, annotation in annotations.fill(_keyed(*item) for item in json_items(file, "annotations.item")):
                yield _unused(file, id, annotation, DUPLICATE)
            for question in questions:
                yield _answered(question, annotations.get(question.id))
            for id, annotation in annotations.unused():
                yield _unused(file, id, annotation, "annotation without question")

    def image_folder(self, split: str) -> Path:
        return self.find(SUBSETS[split].replace("-dev", ""))

    def _questions(self, split: str) -> Path:
        return self.find(f"v2_OpenEnded_mscoco_{SUBSETS[split]}_questions.json")

    def _annotations(self, split: str) -> list[Path]:
        """The one file, none for a test."""
        return [self.find(f"v2_mscoco_{SUBSETS[split]}_annotations.json")] if split in ("train", "val") else []


def _question(item: dict, folder: str) -> Entry:
    image_id, image = coco_image(item, folder)
    id, question = id_of(item, "question_id"), text_of(item, "question")
    return Entry(id, image_id=image_id, image=image, post=question, extras={"image_id": image_id})


def _keyed(number: int, item: Any) -> tuple[str, int, dict]:
    """The question's id, and of its annotation what is needed; it is looked at when its question is known."""
    if not (id := any_id(item)):
        return "", number, {"number": number}
    answers = item.get("answers")
    if isinstance(answers, list):
        answers = [answer.get("answer") if isinstance(answer, dict) else None for answer in answers]
    kept = ("image_id", "question_type", "answer_type", "multiple_choice_answer")
    return id, 0, {"number": number, "answers": answers, **{key: item.get(key) for key in kept}}


def _answered(question: Entry, annotations: list[dict]) -> Entry:
    """The question with its annotation, or with the reason why that cannot be used."""
    if question.reason:
        return question
    try:
        if not annotations:
            raise BadEntry("no annotation")
        [annotation] = annotations
        if id_of(annotation, "image_id") != question.image_id:
            raise BadEntry("annotation of another image")
        answers = annotation["answers"]
        if not isinstance(answers, list) or len(answers) != ANSWERS:
            raise BadEntry(f"{len(answers) if isinstance(answers, list) else 'no'} answers instead of {ANSWERS}")
        question.comments = [text_of(annotation, "multiple_choice_answer")]
        question.extras["answers"] = [unicode_text(answer, "answer") for answer in answers]
        question.extras |= {key: text_of(annotation, key) for key in ("answer_type", "question_type")}
    except BadEntry as error:
        question.reason = str(error)
    return question


def _unused(file: Path, id: str, annotation: dict, reason: str) -> Entry:
    return Entry(id, reason=reason, file=str(file), number=annotation["number"])


@dataclass(frozen=True, kw_only=True)
class ClassifiedAnswers(Task):
    """Answers scored by the official accuracy, which compares them whole: there is no tokenization to choose."""

    def choose_tokenization(self, wanted: str) -> str:
        if wanted not in ("task", self.tokenization):
            raise UserError(f"--tokenization {wanted}: {self.name} compares whole answers; leave the setting out")
        return self.tokenization

    def measure(
        self,
        predictions: list[str],
        texts: list[Texts],
        tokenization: str = WHOLE_ANSWERS,
        meteor: bool = False,
        resamples: int = 1000,
        seed: int = 0,
    ) -> Measured:
        """See `measure_answers`; `tokenization` and `meteor` change nothing."""
        return measure_answers(predictions, texts, resamples, seed)

    def score(
        self, predictions: list[str], texts: list[Texts], tokenization: str = WHOLE_ANSWERS, meteor: bool = False
    ) -> dict:
        """As `Task.score`, without the 65 question types, which would crowd a training log."""
        return measure_answers(predictions, texts, resamples=0, by_question_type=False).flat()

    def has_references(self, texts: Texts) -> bool:
        return bool(texts.extras.get("answers"))


# The server takes a list of {"question_id": number, "answer"}.
VQA2 = ClassifiedAnswers(
    name="vqa2",
    kind="classify",
    reads_text=True,
    tokenization=WHOLE_ANSWERS,
    best_metric="accuracy",
    higher_is_better=True,
    max_new_tokens=25,
    form=Form("question_id", "answer", question_id, lines=False, ascii=True),
)
