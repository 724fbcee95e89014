"""The rating sheet: which answers are shown and in which order, drawn at random from a seed.

A sheet has N questions and W writers: the people who answered (the data set's own answers) and one or more systems.
Every question is shown W times, once with each writer's answer, in W rounds:

- all questions in a random order, which is the same in every round, so that a picture returns only after all others;
- in each round every writer answers N/W of the questions (one more or less); which one comes first is random for each
  question.

So a rater who stops early has still judged a balanced part, and neighboring answers say nothing about who wrote an answer.
All raters get the same order, because agreement is counted over the answers that two raters both judged: in the same order
these are all that the slower one has judged.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cromic_ds.data.dataset import Dataset, UnreadableRecord
from cromic_ds.data.order import order_key, permute
from cromic_ds.errors import UserError
from cromic_ds.files import file_digest
from cromic_ds.tasks import TASKS

HUMAN = "human"
"""The name of the people whose answers are in the data set."""


@dataclass(frozen=True)
class RatedQuestion:
    """A question of the sheet, with the answer that a person gave."""

    record: int  # index in the split
    id: str
    text: str
    human_answer: str


@dataclass(frozen=True)
class Item:
    """One answer to judge: the content of one position of the sheet."""

    record: int  # index in the split, for the picture
    record_id: str
    writer: str  # HUMAN or a system's name; never leaves the server
    question: str
    answer: str


def parse_systems(predictions: list[str]) -> dict[str, Path]:
    """Return files by system, from `FILE` (named after the file, without extension) or `NAME=FILE`. Raises UserError."""
    if not predictions:
        raise UserError("predictions is missing: give one file for each system to be rated")
    systems: dict[str, Path] = {}
    for given in predictions:
        name, _, file = given.rpartition("=")
        if not name or Path(given).is_file():
            name, file = Path(given).stem, given
        if not Path(file).is_file():
            raise UserError(f"{file}: no such predictions file; `cromic-ds predict` writes one")
        if name == HUMAN or name in systems:
            taken = "means the people's answers" if name == HUMAN else "is given twice"
            raise UserError(f"{given}: the name {name!r} {taken}; give another as NAME=FILE")
        systems[name] = Path(file)
    return systems


def describe_sheet(
    dataset: Dataset, data: str, systems: dict[str, Path], count: int | None, seed: int
) -> dict[str, Any]:
    """Return everything that determines a sheet. Two sheets with equal descriptions are equal."""
    return {
        "data": {"path": str(Path(data).resolve()), "split": dataset.split, "fingerprint": dataset.fingerprint},
        "count": count or 0,  # rating files of all versions say 0 for all
        "seed": seed,
        "systems": {name: file_digest(file)["blake2b"] for name, file in systems.items()},
    }


def sample_questions(dataset: Dataset, count: int | None, seed: int) -> tuple[list[RatedQuestion], Counter[str]]:
    """Return `count` random questions (None = all), and why others were skipped. Reads no more records than needed.

    Raises UserError if no record can be rated.
    """
    n, key = len(dataset), order_key(seed, 0)
    wanted = count or n
    questions: list[RatedQuestion] = []
    skipped: Counter[str] = Counter()
    for position in range(n):
        if len(questions) == wanted:
            break
        index = int(permute(position, n, key))
        try:
            texts = dataset.texts(index)
            has_picture = dataset.image(index) is not None
        except UnreadableRecord as error:
            skipped[error.reason] += 1
            continue
        human_answer = tidy(texts.comments[0]) if texts.comments else ""
        if not has_picture or not human_answer:
            skipped["no answer of a person" if has_picture else "no picture"] += 1
            continue
        questions.append(RatedQuestion(index, texts.id, texts.post.strip(), human_answer))
    if not questions:
        why = ", ".join(f"{n:,} {reason}" for reason, n in skipped.items()) or "it is empty"
        raise UserError(f"split {dataset.split!r} has no record to rate ({why}); choose one with pictures and answers")
    return questions, skipped


def read_system_answers(file: Path, task: str, questions: Sequence[RatedQuestion], split_size: int) -> dict[str, str]:
    """Return a system's answers to the sheet's questions, by record id. The whole file is read and checked.

    Raises UserError for a file of another split: a different number of answers, or a missing or duplicate one.
    """
    wanted = {question.id for question in questions}
    if len(wanted) < len(questions):
        repeated, _ = Counter(question.id for question in questions).most_common(1)[0]
        raise UserError(f"record id {repeated!r} is there more than once, so its answers cannot be distinguished")
    answers: dict[str, str] = {}
    total = 0
    for id, text in TASKS[task].form.read(file):
        total += 1
        if id in answers:
            raise UserError(f"{file}: id {id!r} has two answers; each id of the split must have one")
        if id in wanted:
            answers[id] = tidy(text)
    missing = [question.id for question in questions if question.id not in answers]
    if missing:
        raise UserError(
            f"{file}: no answer for {len(missing):,} of {len(questions):,} questions (id {missing[0]!r} for one); "
            "is it of this split?"
        )
    if total != split_size:
        raise UserError(f"{file}: {total:,} answers for the {split_size:,} records of the split; is it of this split?")
    return answers


def arrange(questions: Sequence[RatedQuestion], answers: dict[str, dict[str, str]], seed: int) -> Iterator[Item]:
    """Yield the sheet, position by position. answers: text by record id, by system."""
    writers = [HUMAN, *answers]
    first_writer = [i % len(writers) for i in range(len(questions))]
    random.Random(f"writers {seed}").shuffle(first_writer)
    for round_ in range(len(writers)):
        for question, first in zip(questions, first_writer):
            writer = writers[(first + round_) % len(writers)]
            answer = question.human_answer if writer == HUMAN else answers[writer][question.id]
            yield Item(question.record, question.id, writer, question.text, answer)


def tidy(text: str) -> str:
    """Return an answer as it is shown for every writer: in lower case, without unnecessary spaces.

    Most tokenizers here lower-case the text that a model reads and writes, and drop spaces around Chinese characters: capitals
    and spaces would reveal the people.
    """
    return _SPACE_BESIDE_CHINESE.sub("", " ".join(text.lower().split()))


_CHINESE = r"\u3000-\u303f\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_SPACE_BESIDE_CHINESE = re.compile(rf"(?<=[{_CHINESE}]) | (?=[{_CHINESE}])")
