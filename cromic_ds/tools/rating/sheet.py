"""The rating sheet: which answers are shown, in which order, drawn from a seed.

A sheet has N questions and W writers: the people who answered (the data set's own answers) and one or more systems.
Every question is shown W times, once with each writer's answer, in W rounds:

- all questions in random order, the same in every round, so that a picture returns only after all others;
- in each round every writer answers N/W of the questions (one more or less); which one comes first is random for each
  question.

So whoever stops early has still judged a balanced part, and neighbors say nothing about who wrote an answer. All raters
get the same order: agreement is counted over the answers that two raters both judged, and in the same order these are all
that the slower one has judged.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cromic_ds.data.dataset import Dataset, UnreadableRecord
from cromic_ds.data.order import order_key, permute
from cromic_ds.errors import UserError
from cromic_ds.tasks import TASKS

HUMAN = "human"
"""The writer of the data set's own answers, as the report names it."""


@dataclass(frozen=True)
class Question:
    """A question of the sheet, with the answer that a person gave."""

    record: int  # index in the split
    id: str
    text: str
    human_answer: str


@dataclass(frozen=True)
class Item:
    """One answer to be judged: what stands at one position of the sheet."""

    record: int  # index in the split, for the picture
    record_id: str
    writer: str  # HUMAN or a system's name; never leaves the server
    question: str
    answer: str


def parse_systems(predictions: list[str]) -> dict[str, Path]:
    """Name to file, from `FILE` (named as the file, without extension) or `NAME=FILE`. Raises UserError."""
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
            taken = "stands for the people's answers" if name == HUMAN else "is given twice"
            raise UserError(f"{given}: the name {name!r} {taken}; give another as NAME=FILE")
        systems[name] = Path(file)
    return systems


def describe(dataset: Dataset, data: str, systems: dict[str, Path], count: int, seed: int) -> dict:
    """All that a sheet follows from. Two sheets with equal descriptions are equal."""
    return {
        "data": {"path": str(Path(data).resolve()), "split": dataset.split, "fingerprint": dataset.fingerprint},
        "count": count,
        "seed": seed,
        "systems": {name: _digest(file) for name, file in systems.items()},
    }


def draw_questions(dataset: Dataset, count: int, seed: int) -> tuple[list[Question], Counter[str]]:
    """`count` random questions (0 = all), and why others were passed over. Reads no more records than it needs.

    Raises UserError where no record can be rated.
    """
    n, key = len(dataset), order_key(seed, 0)
    wanted = count or n
    questions: list[Question] = []
    passed_over: Counter[str] = Counter()
    for position in range(n):
        if len(questions) == wanted:
            break
        index = permute(position, n, key)
        try:
            texts = dataset.texts(index)
            has_picture = dataset.image(index) is not None
        except UnreadableRecord as error:
            passed_over[error.reason] += 1
            continue
        human_answer = tidy(texts.comments[0]) if texts.comments else ""
        if not has_picture or not human_answer:
            passed_over["no answer of a person" if has_picture else "no picture"] += 1
            continue
        questions.append(Question(index, texts.id, texts.post.strip(), human_answer))
    if not questions:
        why = ", ".join(f"{n:,} {reason}" for reason, n in passed_over.items()) or "it is empty"
        raise UserError(f"split {dataset.split!r} has no record to rate ({why}); choose one with pictures and answers")
    return questions, passed_over


def read_answers(file: Path, task: str, questions: Sequence[Question], split_size: int) -> dict[str, str]:
    """What a system answers to the sheet's questions, by record id. The whole file is read, only these are kept.

    Raises UserError for a file that is not of this split: other in number, or a question's answer missing or there twice.
    """
    wanted = {question.id for question in questions}
    if len(wanted) < len(questions):
        repeated, _ = Counter(question.id for question in questions).most_common(1)[0]
        raise UserError(f"record id {repeated!r} is there more than once, so answers cannot be told apart")
    answers: dict[str, str] = {}
    total = 0
    for id, text in TASKS[task].read_predictions(file):
        total += 1
        if id in answers:
            raise UserError(f"{file}: id {id!r} has two answers; each id of the split must be there once")
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


def arrange(questions: Sequence[Question], answers: dict[str, dict[str, str]], seed: int) -> Iterator[Item]:
    """The sheet, position by position; `answers` are the systems' (name to record id to text)."""
    writers = [HUMAN, *answers]
    first_writer = [i % len(writers) for i in range(len(questions))]
    random.Random(f"writers {seed}").shuffle(first_writer)
    for round_ in range(len(writers)):
        for question, first in zip(questions, first_writer):
            writer = writers[(first + round_) % len(writers)]
            answer = question.human_answer if writer == HUMAN else answers[writer][question.id]
            yield Item(question.record, question.id, writer, question.text, answer)


def tidy(text: str) -> str:
    """An answer as it is shown, whoever wrote it: in lower case, without stray blanks.

    Most tokenizers here lower-case what a model reads and says, and blanks are lost around Chinese characters: capitals
    and blanks would give people away.
    """
    return _BLANK_BESIDE_CHINESE.sub("", " ".join(text.lower().split()))


_CHINESE = r"\u3000-\u303f\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_BLANK_BESIDE_CHINESE = re.compile(rf"(?<=[{_CHINESE}]) | (?=[{_CHINESE}])")


def _digest(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as f:
        while piece := f.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
