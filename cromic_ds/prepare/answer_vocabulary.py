"""The answer vocabulary of classified question answering: built from annotations, or read from a file."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

from cromic_ds.data.store import ANSWERS_FILE
from cromic_ds.errors import UserError
from cromic_ds.files import read_json, write_atomically
from cromic_ds.metrics.vqa_answers import normalize_answer
from cromic_ds.tasks.reader import OfficialReader, json_items

_ANSWER = "annotations.item.multiple_choice_answer"


def vocabulary(reader: OfficialReader, given: str, min_count: int, work: Path) -> list[str]:
    """Return the `given` vocabulary, or that of the annotations if none is given. It is kept in `work` for a resume."""
    file = work / ANSWERS_FILE
    if not file.exists():
        annotations = reader.answer_files()
        answers = read_vocabulary(given) if given else build_vocabulary(annotations, min_count)
        if given and (there := [path for path in annotations if path.is_file()]):
            _refuse_foreign(answers, given, there[0])
        write_atomically(file, json.dumps(answers))
    return read_json(file)


def build_vocabulary(annotations: list[Path], min_count: int) -> list[str]:
    """Return the normalized `multiple_choice_answer`s that occur at least `min_count` times, the most frequent first.

    In train and val of the real data 3,129 answers occur at least 9 times. As in that vocabulary, an answer that is only an
    article becomes the empty answer.
    """
    counts: Counter[str] = Counter()
    for file in annotations:
        counts.update(normalize_answer(answer) for _, answer in json_items(file, _ANSWER) if isinstance(answer, str))
    frequent = [answer for answer, count in counts.items() if count >= min_count]
    if not frequent:
        raise UserError(
            f"no answer occurs {min_count} times in {', '.join(file.name for file in annotations)}; "
            "lower min_answer_count, or give an answer vocabulary with --answers"
        )
    return sorted(frequent, key=lambda answer: (-counts[answer], answer))


def read_vocabulary(path: str | Path) -> list[str]:
    """Return the answers of a file {answer: index} or [answer, …], or of a store or another folder with answers.json.

    Raises UserError for a file that does not give each index exactly one answer.
    """
    file = Path(path) / ANSWERS_FILE if Path(path).is_dir() else Path(path)
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise _unusable(file, getattr(error, "strerror", None) or str(error)) from None
    if isinstance(content, dict):
        if not all(type(index) is int for index in content.values()):
            raise _unusable(file, "an index is not a whole number")
        if sorted(content.values()) != list(range(len(content))):
            raise _unusable(file, f"its {len(content):,} indices are not 0 to {len(content) - 1:,}, each once")
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not all(isinstance(answer, str) for answer in content):
        raise _unusable(file, "neither indices by answer nor a list of answers")
    if not content:
        raise _unusable(file, "empty")
    if len(set(content)) < len(content):
        twice = Counter(content).most_common(1)[0][0]
        raise _unusable(file, f"{twice!r} is in it more than once")
    return content


def _refuse_foreign(answers: list[str], source: str, annotations: Path) -> None:
    """Raise UserError if a given vocabulary contains none of the first 1,000 answers of the annotations."""
    known = set(answers)
    first = islice(json_items(annotations, _ANSWER), 1000)
    if not any(isinstance(answer, str) and normalize_answer(answer) in known for _, answer in first):
        raise UserError(f"{source}: {annotations.name} gives none of its answers; take the vocabulary of this task")


def _unusable(file: Path, reason: str) -> UserError:
    return UserError(
        f"{file}: not an answer vocabulary ({reason}); give a JSON file {{answer: index}}, a list of answers, or a store"
    )
