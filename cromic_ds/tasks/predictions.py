"""Prediction files in the forms that evaluation servers take, and the check that they are complete."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cromic_ds.data.dataset import Texts
from cromic_ds.errors import UserError

_NAMED = 5  # ids in an error message


def image_id(texts: Texts) -> str | int:
    """Return the image's id as the task's annotations have it, without an extension."""
    return texts.extras.get("image_id", texts.id)


def question_id(texts: Texts) -> str | int:
    """Return the record's id, as a number if it is one."""
    number = texts.id.isascii() and texts.id.isdigit() and str(int(texts.id)) == texts.id
    return int(texts.id) if number else texts.id


@dataclass(frozen=True)
class Form:
    """The form of a prediction file: objects with an id and a text, as one JSON list or as JSON lines, in UTF-8."""

    id_key: str
    text_key: str
    id_of: Callable[[Texts], str | int]
    lines: bool  # JSON lines instead of a list
    ascii: bool = False  # escape all other characters as \uXXXX

    def write(self, file: IO[str], pairs: Iterable[tuple[Texts, str]]) -> None:
        """Write one object per pair, each on its own line. file: opened as UTF-8."""
        entries = (
            json.dumps({self.id_key: self.id_of(texts), self.text_key: text}, ensure_ascii=self.ascii)
            for texts, text in pairs
        )
        if self.lines:
            file.writelines(f"{entry}\n" for entry in entries)
            return
        file.write("[")
        file.writelines(f"{',' if k else ''}\n{entry}" for k, entry in enumerate(entries))
        file.write("\n]\n")

    def read(self, path: Path) -> Iterator[tuple[str, str]]:
        """Yield (id, text) of each object; other fields are ignored. Raises UserError naming the line or the entry."""
        for where, entry in self._entries(path):
            if not isinstance(entry, dict) or not {self.id_key, self.text_key} <= entry.keys():
                raise UserError(f'{where}: expected an object with "{self.id_key}" and "{self.text_key}"')
            id, text = entry[self.id_key], entry[self.text_key]
            if isinstance(id, bool) or not isinstance(id, str | int) or not isinstance(text, str):
                raise UserError(
                    f'{where}: "{self.id_key}" must be text or a whole number and "{self.text_key}" text, '
                    f"not {_short(id)} and {_short(text)}"
                )
            yield str(id), text

    def _entries(self, path: Path) -> Iterator[tuple[str, object]]:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        content = content.removeprefix(b"\xef\xbb\xbf")
        if self.lines:
            for number, line in enumerate(content.split(b"\n"), 1):
                if line.strip():
                    yield f"{path}: line {number}", _parsed(line, f"{path}: line {number}")
        else:
            entries = _parsed(content, str(path))
            if not isinstance(entries, list):
                raise UserError(f"{path}: expected one JSON list of objects")
            for number, entry in enumerate(entries, 1):
                yield f"{path}: entry {number}", entry


def check_ids(found: Iterable[str], expected: Iterable[str], where: str) -> None:
    """Raise UserError, with counts and the first ids, unless each expected id is found exactly once and no other id is."""
    times = Counter(found)
    wanted = dict.fromkeys(expected)
    wrong = {
        "missing": [i for i in wanted if i not in times],
        "foreign": [i for i in times if i not in wanted],
        "duplicate": [i for i, n in times.items() if n > 1 and i in wanted],
    }
    parts = [f"{len(ids)} {kind} ({_first(ids)})" for kind, ids in wrong.items() if ids]
    if parts:
        raise UserError(
            f"{where}: of the split's {len(wanted)} ids each must be there exactly once, but {', '.join(parts)}"
        )


def _first(ids: list[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (", …" if len(ids) > _NAMED else "")


def _parsed(content: bytes, where: str) -> object:
    try:
        return json.loads(content)
    except ValueError as error:  # bad UTF-8 as well
        raise UserError(f"{where}: not JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{where}: not JSON that this program reads (too deep)") from None


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:40] + "…"
