"""Generate comments for a picture and its post, or for many, with an exported model."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cromic_ds.errors import UserError
from cromic_ds.files import read_lines, replacing
from cromic_ds.inference.output import output_file
from cromic_ds.inference.settings import DecodingSettings, GenerateSettings

if TYPE_CHECKING:
    from cromic_ds.inference.loaded import LoadedExport

IMAGE_NAMES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


def generate(settings: GenerateSettings) -> None:
    """Run `cromic-ds generate`. Of many records, one that cannot be used gets an `error` instead of `comments`.

    Raises UserError if the one picture or post cannot be used, or the input cannot be read.
    """
    records = read_input(Path(settings.input), settings.post) if settings.input else None
    out = output_file(settings.out) if settings.out else None

    import torch

    from cromic_ds.inference.loaded import load

    export = load(settings.export, settings.precision)
    torch.manual_seed(settings.seed)
    if records is None:
        print("\n".join(export.generate(settings.post, settings.image, settings)))
        return
    failed = 0
    with replacing(out) if out else nullcontext(sys.stdout) as file:
        for record in comment_on(export, records, settings, settings.batch):
            failed += "error" in record
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    if failed:
        print(f"{failed} records could not be used; they have an 'error' in the output", file=sys.stderr)


def read_input(source: Path, post: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a folder of pictures, which all get `post`, or of a JSONL file, one at a time."""
    if source.is_dir():
        names = sorted(e.name for e in os.scandir(source) if Path(e.name).suffix.lower() in IMAGE_NAMES)
        if not names:
            raise UserError(f"{source}: no pictures in it ({', '.join(IMAGE_NAMES)})")
        return ({"image": str(source / name), "post": post} for name in names)
    if not source.is_file():
        raise UserError(f"{source}: no such folder or file")
    return read_jsonl(source)


def read_jsonl(source: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSONL file. Raises UserError for a line that is no record."""
    for number, _, line in read_lines(source):
        if not line.strip():
            continue
        try:
            record = json.loads(line)  # decodes the bytes, so that bad UTF-8 is an error of its line
        except ValueError as error:
            raise UserError(f"{source}: line {number} is not JSON ({error})") from None
        if not isinstance(record, dict) or not {"image", "post"} & record.keys():
            raise UserError(f'{source}: line {number} is no object with "image" or "post"')
        if not all(isinstance(record.get(key) or "", str) for key in ("image", "post")):
            raise UserError(f'{source}: line {number}: "image" and "post" must be text')
        if record.get("image"):
            record["image"] = str(source.parent / record["image"])
        yield record


def comment_on(
    export: LoadedExport, records: Iterable[dict[str, Any]], decoding: DecodingSettings, batch: int
) -> Iterator[dict[str, Any]]:
    """Yield each record with its `comments`, or with an `error`, in the records' order."""
    records = iter(records)
    while group := list(itertools.islice(records, batch)):
        usable, encoded = [], []
        for record in group:
            try:
                encoded.append(export.encode_post(record.get("post") or "", record.get("image")))
                usable.append(record)
            except UserError as error:
                record["error"] = str(error)
        for record, comments in zip(usable, export.generate_many(encoded, decoding)):
            record["comments"] = comments
        yield from group
