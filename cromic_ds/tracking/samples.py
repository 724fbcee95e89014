"""RUN/samples: what the model generated at each evaluation, for programs (JSONL) and people (Markdown, pictures)."""

import dataclasses
import json
import re
import zlib
from pathlib import Path

from cromic_ds.files import write_atomically
from cromic_ds.run_folder import RunFolder, step_name
from cromic_ds.tracking.tracker import SampleRow, Tracker


class SamplesFolder(Tracker):
    """Writes `step-00000100.jsonl`, `step-00000100.md` and, once for each example, `images/<id>.jpg`.

    A line of the JSONL is a SampleRow, with `image` (a path relative to the folder, or null) in place of the bytes.
    If a step is evaluated again after a resume, its files are replaced.
    """

    def __init__(self, run_folder: Path):
        self._folder = RunFolder(run_folder).samples

    def samples(self, step: int, rows: list[SampleRow]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        lines, sections = [], [f"# Samples after step {step}\n"]
        for row in rows:
            image = self._image(row)
            record = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name != "jpeg"}
            lines.append(json.dumps(record | {"image": image}, ensure_ascii=False) + "\n")
            sections.append(_section(row, image))
        write_atomically(self._folder / f"{step_name(step)}.jsonl", "".join(lines), durable=False)
        write_atomically(self._folder / f"{step_name(step)}.md", "\n".join(sections), durable=False)

    def _image(self, row: SampleRow) -> str | None:
        if row.jpeg is None:
            return None
        name = f"images/{_file_name(row.id)}.jpg"
        path = self._folder / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, row.jpeg, durable=False)
        return name


def _section(row: SampleRow, image: str | None) -> str:
    lines = [f"## {_escape(row.id)}", ""]
    if image is not None:
        lines += [f"![{_escape(row.id)}]({image})", ""]
    if row.post:
        lines.append(f"- post: {_escape(row.post)}")
    lines += [f"- generated: {_escape(text)}" for text in row.generated]
    lines += [f"- reference: {_escape(text)}" for text in row.references]
    if "answer" in row.extras:
        lines.append(f"- answer: {_escape(str(row.extras['answer']))}")
    return "\n".join([*lines, ""])


def _escape(text: str) -> str:
    """Return user text as plain text in one line of Markdown."""
    return re.sub(r"([\\`*_\[\]<>#|!~])", r"\\\1", " ".join(text.split()))


def _file_name(example_id: str) -> str:
    """Return the id if it can be a file name, else its harmless characters and a checksum that keeps it unique."""
    clean = re.sub(r"[^\w-]", "_", example_id)[:80]
    return clean if clean == example_id else f"{clean}-{zlib.crc32(example_id.encode()):08x}"
