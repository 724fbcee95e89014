"""`cromic-ds sample`: the sample world as posts with comments (a store, raw lines with image files, or the published
layout), or as the official files of the five downstream tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import lmdb
import numpy as np

from cromic_ds.data.order import example_seed
from cromic_ds.data.record import Record
from cromic_ds.data.tokenizer import encode, train_tokenizer
from cromic_ds.errors import UserError
from cromic_ds.prepare.raw_lines import format_line
from cromic_ds.prepare.store_writer import StoreWriter, refuse_existing
from cromic_ds.progress import ProgressBar
from cromic_ds.world import language
from cromic_ds.world.draw import JPEG_QUALITY, draw_jpeg
from cromic_ds.world.folder import new_folder
from cromic_ds.world.official_files import check_official, write_official
from cromic_ds.world.scenes import POST_SCENES, nth_scene, question_extras, questions
from cromic_ds.world.settings import SampleSettings

VOCAB_SIZE = 512  # more than the world's language needs
POST_TOKENS, COMMENT_TOKENS = 40, 25  # as `cromic-ds prepare` cuts them, and to which the published files are padded


@dataclass(slots=True)
class SamplePost:
    """One post of the world with its picture."""

    id: str
    split: str
    post: str
    comments: list[str]
    extras: dict  # how its comments are judged, and the scene
    jpeg: bytes


def sample(settings: SampleSettings) -> None:
    """Write the world; its folder appears when it is complete. Raises UserError."""
    _check(settings)
    if settings.official:
        write_official(settings)
        return
    out = Path(settings.out)
    refuse_existing(out)
    posts = _with_progress(world(settings), settings.posts)
    write: Callable[[Path, Iterator[SamplePost], SampleSettings], None] = {
        "store": _write_store,
        "raw": _write_raw,
        "published": _write_published,
    }[settings.layout]
    write(out, posts, settings)
    print(f"{out}: {settings.posts:,} posts of the sample world (seed {settings.seed}, layout {settings.layout})")


def world(settings: SampleSettings) -> Iterator[SamplePost]:
    """All posts, those of `val` last. No two share a scene, so none is in both splits."""
    first_val = settings.posts - round(settings.posts * settings.val_fraction)
    for i in range(settings.posts):
        scene = nth_scene(i, settings.seed)
        rng = np.random.default_rng(example_seed(settings.seed, 0, i))
        asked, probabilities = zip(*questions(scene))
        question = asked[rng.choice(len(asked), p=probabilities)]
        post, comments = language.post(question, rng), language.comments(question, rng)
        jpeg = draw_jpeg(scene, rng, settings.image_size)
        split = "train" if i < first_val else "val"
        yield SamplePost(f"w{settings.seed}-{i:06d}", split, post, comments, question_extras(question, scene), jpeg)


def _check(settings: SampleSettings) -> None:
    if not (settings.out or settings.official):
        raise UserError("sample: no folder to write to; give one with --out, or --official for the downstream tasks")
    if settings.out and settings.official:
        raise UserError("sample: --out is for posts and --official for the downstream tasks; give one of them")
    if not 0 <= settings.val_fraction <= 1:
        raise UserError(f"sample: val_fraction {settings.val_fraction} is not a share; choose between 0 and 1")
    if not 32 <= settings.image_size <= 1024:
        raise UserError(f"sample: image_size {settings.image_size}; choose between 32 and 1024 pixels")
    if settings.official:
        check_official(settings)
    elif not 1 <= settings.posts <= POST_SCENES:
        raise UserError(
            f"sample: {settings.posts} posts; the world has {POST_SCENES} scenes for posts, choose between 1 and that"
        )


def _with_progress(posts: Iterator[SamplePost], total: int) -> Iterator[SamplePost]:
    with ProgressBar("sample", total, "posts") as bar:
        for done, post in enumerate(posts, 1):
            yield post
            if done % 50 == 0 or done == total:
                bar.update(done)


def _write_store(out: Path, posts: Iterator[SamplePost], settings: SampleSettings) -> None:
    tokenizer = train_tokenizer(language.vocabulary_texts(), VOCAB_SIZE)
    about = {
        "image_short_side": settings.image_size,
        "jpeg_quality": JPEG_QUALITY,
        "max_post_tokens": POST_TOKENS,
        "max_comment_tokens": COMMENT_TOKENS,
        "lines": settings.posts,
        "rejects": {},
        "world_seed": settings.seed,
    }
    with StoreWriter(out, tokenizer, **about) as store:
        for post in posts:
            post_tokens, *comment_tokens = encode(tokenizer, [post.post, *post.comments], POST_TOKENS)
            record = Record(post.id, post.post, post.comments, post_tokens, comment_tokens, post.extras, post.id)
            store.add(post.split, record, post.jpeg)


def _write_raw(out: Path, posts: Iterator[SamplePost], settings: SampleSettings) -> None:
    """`lines.txt`, `images/<id>.jpg` and `extras.jsonl`: the input of `cromic-ds prepare`."""
    with new_folder(out) as work:
        (work / "images").mkdir()
        with (
            (work / "lines.txt").open("w", encoding="utf-8", newline="\n") as lines,
            (work / "extras.jsonl").open("w", encoding="utf-8", newline="\n") as extras,
        ):
            for post in posts:
                lines.write(format_line(post.id, post.post, post.comments) + "\n")
                about = {"id": post.id, "split": post.split, **post.extras}
                extras.write(json.dumps(about, ensure_ascii=False) + "\n")
                (work / "images" / f"{post.id}.jpg").write_bytes(post.jpeg)


def _write_published(out: Path, posts: Iterator[SamplePost], settings: SampleSettings) -> None:
    """`<split>.pt`, `<split>_image_lmdb` and `vocab.txt`; ids carry a trailing blank, as in the published files."""
    import torch

    tokenizer = train_tokenizer(language.vocabulary_texts(), VOCAB_SIZE)
    with new_folder(out) as work:
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        (work / "vocab.txt").write_text(
            "".join(f"{token}\n" for token, _ in vocabulary), encoding="utf-8", newline="\n"
        )
        for split, group in groupby(posts, key=lambda post: post.split):
            content = {"all_did": [], "did2post": {}, "did2cmts": {}}
            with _images(work / f"{split}_image_lmdb", settings) as images:
                for post in group:
                    tokens, *comments = encode(tokenizer, [post.post, *post.comments], POST_TOKENS)
                    id = f"{post.id} "
                    content["all_did"].append(id)
                    content["did2post"][id] = _padded(tokens, POST_TOKENS)
                    content["did2cmts"][id] = [_padded(comment, COMMENT_TOKENS) for comment in comments]
                    images.put(id.encode(), post.jpeg, append=True)
            torch.save(content, work / f"{split}.pt")


def _padded(tokens: np.ndarray, length: int) -> list[int]:
    return tokens.tolist() + [0] * (length - len(tokens))


@contextmanager
def _images(folder: Path, settings: SampleSettings) -> Iterator[lmdb.Transaction]:
    """A transaction on a new environment. Its map has room for a byte a pixel, several times what the JPEGs take."""
    map_size = (1 << 20) + settings.posts * (settings.image_size**2 + 8192)
    env = lmdb.open(str(folder), map_size=map_size, lock=False)
    with env.begin(write=True) as txn:
        yield txn
    env.close()
