"""VQA v2.0: questions about images of COCO, each answered by ten people.

    v2_OpenEnded_mscoco_train2014_questions.json     {"questions": [{"image_id", "question", "question_id"}], ...}
                        val2014, test2015, test-dev2015
    v2_mscoco_train2014_annotations.json, val2014    {"annotations": [{"question_id", "image_id", "question_type",
                                                     "answer_type", "multiple_choice_answer",
                                                     "answers": [{"answer", ...}, ten of them]}], ...}
    train2014/COCO_train2014_000000000009.jpg, val2014/, test2015/

The questions of test-dev2015 are a part of those of test2015. The annotations of both tests are not public.
"""

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
from cromic_ds.tasks.fields import BadEntry, any_id, id_field, text_field, unicode_text
from cromic_ds.tasks.predictions import Form, question_id
from cromic_ds.tasks.reader import FolderReader, OfficialEntry, coco_question, json_items, parse_entries

_PEOPLE = 10  # who answered each question
_SUBSETS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}


class Vqa2Reader(FolderReader):
    """The question is the post and the most frequent answer the only comment; all ten answers are in the extras."""

    def needs(self) -> dict[str, list[Path]]:
        return {s: [self._questions(s), *self._annotations(s), self.image_folder(s)] for s in _SUBSETS}

    def answer_files(self) -> list[Path]:
        return [*self._annotations("train"), *self._annotations("val")]

    def entries(self, split: str, work: Path) -> Iterator[OfficialEntry]:
        file = self._questions(split)
        parse = partial(coco_question, folder=self.image_folder(split).name, key="question")
        questions = parse_entries(str(file), json_items(file, "questions.item"), parse)
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
        return self.find(_SUBSETS[split].replace("-dev", ""))

    def _questions(self, split: str) -> Path:
        return self.find(f"v2_OpenEnded_mscoco_{_SUBSETS[split]}_questions.json")

    def _annotations(self, split: str) -> list[Path]:
        """Return the one file of annotations, none for a test split."""
        return [self.find(f"v2_mscoco_{_SUBSETS[split]}_annotations.json")] if split in ("train", "val") else []


def _keyed(number: int, item: Any) -> tuple[str, int, dict[str, Any]]:
    """Return the question's id, a number and the needed fields of the annotation, which are checked later, with the question.

    The number distinguishes annotations without an id; for others it is 0, so that a second annotation is a duplicate.
    """
    if not (id := any_id(item)):
        return "", number, {"number": number}
    answers = item.get("answers")
    if isinstance(answers, list):
        answers = [answer.get("answer") if isinstance(answer, dict) else None for answer in answers]
    kept = ("image_id", "question_type", "answer_type", "multiple_choice_answer")
    return id, 0, {"number": number, "answers": answers, **{key: item.get(key) for key in kept}}


def _answered(question: OfficialEntry, annotations: list[dict[str, Any]]) -> OfficialEntry:
    """Add its annotation to the question, or the reason why that cannot be used."""
    if question.reason:
        return question
    try:
        if not annotations:
            raise BadEntry("no annotation")
        [annotation] = annotations
        if id_field(annotation, "image_id") != question.image_id:
            raise BadEntry("annotation of another image")
        answers = annotation["answers"]
        if not isinstance(answers, list) or len(answers) != _PEOPLE:
            raise BadEntry(f"{len(answers) if isinstance(answers, list) else 'no'} answers instead of {_PEOPLE}")
        question.comments = [text_field(annotation, "multiple_choice_answer")]
        question.extras["answers"] = [unicode_text(answer, "answer") for answer in answers]
        question.extras |= {key: text_field(annotation, key) for key in ("answer_type", "question_type")}
    except BadEntry as error:
        question.reason = str(error)
    return question


def _unused(file: Path, id: str, annotation: dict[str, Any], reason: str) -> OfficialEntry:
    return OfficialEntry(id, reason=reason, file=str(file), number=annotation["number"])


@dataclass(frozen=True, kw_only=True)
class ClassifiedAnswers(Task):
    """A task scored by the accuracy of VQA v2.0, which compares whole answers: there is no tokenization to choose."""

    def choose_tokenization(self, wanted: str) -> str:
        if wanted not in ("task", self.tokenization):
            raise UserError(f"--tokenization {wanted}: {self.name} compares whole answers; leave the setting out")
        return self.tokenization

    def measure(
        self, predictions: list[str], texts: list[Texts], tokenization: str, meteor: bool, resamples: int, seed: int = 0
    ) -> Measured:
        """Score with `measure_answers`; `tokenization` and `meteor` have no effect."""
        return measure_answers(predictions, texts, resamples, seed)

    def score(self, predictions: list[str], texts: list[Texts], tokenization: str, meteor: bool) -> dict[str, Any]:
        """Return what `Task.score` does, without the scores of 65 question types, which would crowd a training log."""
        return measure_answers(predictions, texts, resamples=0, by_question_type=False).flat()

    def has_references(self, texts: Texts) -> bool:
        return bool(texts.extras.get("answers"))


# The server takes a list of {"question_id": number, "answer"}.
VQA2 = ClassifiedAnswers(
    name="vqa2",
    title="VQA v2.0",
    kind="classify",
    reader=Vqa2Reader,
    reads_text=True,
    tokenization=WHOLE_ANSWERS,
    best_metric="accuracy",
    form=Form("question_id", "answer", question_id, lines=False, ascii=True),
    table_scores={"accuracy": "Acc"},
    table_note="Acc: the accuracy of the official tool.",
    table_place=4,
)
