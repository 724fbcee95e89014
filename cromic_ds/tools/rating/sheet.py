"""The rating sheet: which answers are shown and in which order, drawn at random from a seed.

A sheet has N questions and W writers: the people who answered (the data set's own answers) and one or more systems. Every
question is shown once with each writer's answer, in W rounds. The random order of the questions is the same in every round, so
that a picture returns only after all others. In each round every writer answers N/W of the questions (one more or less); which
one comes first is random for each question. So a rater who stops early has still judged a balanced part, and neighboring
answers say nothing about who wrote an answer. All raters get the same order, so that two raters have both judged everything
that the slower one has; agreement is counted over these answers.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cromic_ds.data.dataset import Dataset, UnreadableRecord
from cromic_ds.data.order import order_key, permute
from cromic_ds.errors import UserError
from cromic_ds.files import file_digest
from cromic_ds.tasks import TASKS
from cromic_ds.tasks.results import describe_data

HUMAN = "human"  # the writer's name for the people whose answers are in the data set


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
        "data": describe_data(str(Path(data).resolve()), dataset),
        "count": count or 0,  # rating files of all versions say 0 for all
        "seed": seed,
        "systems": {name: file_digest(file)["blake2b"] for name, file in systems.items()},
    }


def sample_questions(dataset: Dataset, count: int | None, seed: int) -> tuple[list[Item], Counter[str]]:
    """Return `count` random questions (None = all) with their human answers, and why others were skipped.

    Reads no more records than needed. Raises UserError if no record can be rated.
    """
    n, key = len(dataset), order_key(seed, 0)
    questions: list[Item] = []
    skipped: Counter[str] = Counter()
    for position in range(n):
        if len(questions) == count:
            break
        index = int(permute(position, n, key))
        try:
            texts, picture = dataset.texts(index), dataset.image(index)
        except UnreadableRecord as error:
            skipped[error.reason] += 1
            continue
        answer = tidy(texts.comments[0]) if texts.comments else ""
        if picture is not None and answer:
            questions.append(Item(index, texts.id, HUMAN, texts.post.strip(), answer))
        else:
            skipped["no picture" if picture is None else "no answer of a person"] += 1
    if not questions:
        why = ", ".join(f"{n:,} {reason}" for reason, n in skipped.items()) or "it is empty"
        raise UserError(f"split {dataset.split!r} has no record to rate ({why}); choose one with pictures and answers")
    return questions, skipped


def read_system_answers(file: Path, task: str, questions: Sequence[Item], split_size: int) -> dict[str, str]:
    """Return a system's answers to the sheet's questions, by record id. The whole file is read and checked.

    Raises UserError for a file of another split: a different number of answers, or a missing or duplicate one.
    """
    wanted = Counter(question.record_id for question in questions)
    id, times = wanted.most_common(1)[0]
    if times > 1:
        raise UserError(f"record id {id!r} is there more than once, so its answers cannot be distinguished")
    answers: dict[str, str] = {}
    total = 0
    for id, text in TASKS[task].form.read(file):
        total += 1
        if id in answers:
            raise UserError(f"{file}: id {id!r} has two answers; each id of the split must have one")
        if id in wanted:
            answers[id] = tidy(text)
    missing = [id for id in wanted if id not in answers]
    if missing:
        counts = f"{len(missing):,} of {len(questions):,} questions (id {missing[0]!r} for one)"
        raise UserError(f"{file}: no answer for {counts}; is it of this split?")
    if total != split_size:
        raise UserError(f"{file}: {total:,} answers for the {split_size:,} records of the split; is it of this split?")
    return answers


def arrange(questions: Sequence[Item], answers: dict[str, dict[str, str]], seed: int) -> Iterator[Item]:
    """Yield the sheet, position by position. answers: text by record id, by system."""
    writers = [HUMAN, *answers]
    first_writer = [i % len(writers) for i in range(len(questions))]
    random.Random(f"writers {seed}").shuffle(first_writer)
    for round_ in range(len(writers)):
        for question, first in zip(questions, first_writer):
            writer = writers[(first + round_) % len(writers)]
            answer = question.answer if writer == HUMAN else answers[writer][question.record_id]
            yield replace(question, writer=writer, answer=answer)


def tidy(text: str) -> str:
    """Return an answer as it is shown for every writer: in lower case, without unnecessary spaces.

    Most tokenizers here lower-case text and drop spaces around Chinese characters: capitals and spaces would reveal the people.
    """
    return _SPACE_BESIDE_CHINESE.sub("", " ".join(text.lower().split()))


_CHINESE = r"\u3000-\u303f\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_SPACE_BESIDE_CHINESE = re.compile(rf"(?<=[{_CHINESE}]) | (?=[{_CHINESE}])")
