"""Generate comments for a picture and its post, or for many, with an exported model."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from cromic_ds.data.images import BadImage, training_image
from cromic_ds.data.tokenizer import encode
from cromic_ds.errors import UserError
from cromic_ds.inference.decoding import DecodingSettings, generate_texts
from cromic_ds.inference.job import Loaded, load, output_file

IMAGE_NAMES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclass
class GenerateSettings(DecodingSettings):
    """A model, its input, and how texts are generated."""

    export: str = ""
    """Export folder."""
    image: str | None = None
    """Picture file."""
    post: str = ""
    """Text of the post; with a folder as input, the post of every picture."""
    input: str | None = None
    """Many at once: a folder of pictures, or a JSONL file of {"image": path, "post": text} (other keys are kept);
    picture paths are relative to the file."""
    out: str | None = None
    """JSONL file to write for `input`; without it, standard output."""
    batch: int = 32
    """Posts decoded together."""
    seed: int = 0
    """Seed of the sampling."""
    precision: str = "auto"
    """bf16, fp16, fp32 or auto."""


def generate(settings: GenerateSettings) -> None:
    """`cromic-ds generate`. A record of many that cannot be used gets an `error` instead of `comments`.

    Raises:
        UserError: one picture or post that cannot be used, or settings that do not go together.
    """
    settings.check()
    if settings.batch < 1:
        raise UserError(f"--batch {settings.batch}: give at least 1")
    if settings.input and settings.image:
        raise UserError("give --image for one picture or --input for many, not both")
    if not settings.input and not settings.image and not settings.post:
        raise UserError("nothing to comment on: give --image and --post, or --input FOLDER_OR_JSONL")
    records = many(Path(settings.input), settings.post) if settings.input else None
    out = output_file(Path(settings.out)) if settings.out else None
    loaded = load(settings.export, settings.precision)
    torch.manual_seed(settings.seed)
    if records is None:
        record = {"image": settings.image, "post": settings.post}
        answered = next(iter(answer(loaded, [record], settings)))
        if "error" in answered:
            raise UserError(answered["error"])
        print("\n".join(answered["comments"]))
        return
    failed = write(answer(loaded, records, settings), out)
    if failed:
        print(f"{failed} records could not be used; they have an 'error' in the output", file=sys.stderr)


def many(source: Path, post: str) -> Iterator[dict]:
    """Records of a folder of pictures or a JSONL file, one at a time."""
    if source.is_dir():
        names = sorted(e.name for e in os.scandir(source) if Path(e.name).suffix.lower() in IMAGE_NAMES)
        if not names:
            raise UserError(f"{source}: no pictures in it ({', '.join(IMAGE_NAMES)})")
        return ({"image": str(source / name), "post": post} for name in names)
    if not source.is_file():
        raise UserError(f"{source}: no such folder or file")
    return lines(source)


def lines(source: Path) -> Iterator[dict]:
    with source.open("rb") as f:  # json decodes the bytes, so that bad UTF-8 is an error of its line
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{source}: line {number} is not JSON ({error})") from None
            if not isinstance(record, dict) or not {"image", "post"} & record.keys():
                raise UserError(f'{source}: line {number} is no object with "image" or "post"')
            if not all(isinstance(record.get(key) or "", str) for key in ("image", "post")):
                raise UserError(f'{source}: line {number}: "image" and "post" must be text')
            if record.get("image"):
                record["image"] = str(source.parent / record["image"])
            yield record


def answer(loaded: Loaded, records: Iterable[dict], settings: GenerateSettings) -> Iterator[dict]:
    """Each record with its `comments`, or with an `error`; in the records' order."""
    records = iter(records)
    while group := list(itertools.islice(records, settings.batch)):
        prepared = [prepare(loaded, record) for record in group]
        # Posts with and without a picture make batches of different shape.
        for pictured in (True, False):
            rows = [i for i, p in enumerate(prepared) if not isinstance(p, str) and (p[1] is not None) == pictured]
            for row, texts in zip(rows, comments(loaded, [prepared[i] for i in rows], settings) if rows else []):
                group[row]["comments"] = texts
        for record, p in zip(group, prepared):
            yield {**record, "error": p} if isinstance(p, str) else record


def prepare(loaded: Loaded, record: dict) -> tuple[list[int], torch.Tensor | None] | str:
    """Token ids and crop of a record, or what is wrong with it."""
    mode, image = loaded.model.config.mode, None
    if record.get("image") and "v" in mode:
        try:
            crop = training_image(Path(record["image"]).read_bytes(), loaded.image_size)
        except OSError as error:
            return f"{record['image']}: cannot be read ({error.strerror})"
        except BadImage as error:
            return f"{record['image']}: {error}"
        image = torch.tensor(crop).permute(2, 0, 1)  # a copy: the decoder's array is read-only
    post = record.get("post") or ""
    ids = []
    if post and "t" in mode:
        ids = encode(loaded.tokenizer, [post], loaded.facts.get("max_post_tokens", 40))[0].tolist()
    if not ids and image is None:
        return "neither a picture nor a post that the model reads"
    return ids, image


def comments(loaded: Loaded, rows: list[tuple[list[int], torch.Tensor | None]], settings) -> list[list[str]]:
    longest = max(len(ids) for ids, _ in rows)
    pad = loaded.tokenizer.pad_token_id
    padded = [ids + [pad] * (longest - len(ids)) for ids, _ in rows]
    post_ids = torch.tensor(padded, dtype=torch.long).view(len(rows), longest)
    images = None if rows[0][1] is None else torch.stack([image for _, image in rows])
    with loaded.running() as model:
        return generate_texts(model, loaded.tokenizer, post_ids, images, settings)


def write(records: Iterable[dict], out: Path | None) -> int:
    """Write JSONL as it is made, moved into place at the end; returns how many records have an error."""
    aside = out and out.with_name(f".{out.name}.writing")
    failed = 0
    try:
        with aside.open("w", encoding="utf-8") if aside else nullcontext(sys.stdout) as f:
            for record in records:
                failed += "error" in record
                f.write(json.dumps(record, ensure_ascii=False) + "\n")
        if aside:
            aside.replace(out)
    finally:
        if aside:
            aside.unlink(missing_ok=True)  # only there where something stopped the writing
    return failed
