"""The posts of the sample world, and how they are written: a store, raw lines with image files, and the published layout."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from cromic_ds.data.limits import COMMENT_TOKENS, POST_TOKENS
from cromic_ds.data.order import example_seed
from cromic_ds.data.record import Record
from cromic_ds.data.tokenizer import encode, train_tokenizer
from cromic_ds.prepare.raw_lines import format_line
from cromic_ds.prepare.store_writer import StoreWriter
from cromic_ds.world import language
from cromic_ds.world.pictures import JPEG_QUALITY, draw_jpeg
from cromic_ds.world.scenes import nth_scene, question_extras, scene_questions
from cromic_ds.world.settings import SampleSettings

VOCAB_SIZE = 512  # more than the world's language needs


@dataclass(slots=True)
class SamplePost:
    """One post of the world with its picture."""

    id: str
    split: str
    post: str
    comments: list[str]
    extras: dict[str, Any]  # see `question_extras`
    jpeg: bytes


def sample_posts(settings: SampleSettings) -> Iterator[SamplePost]:
    """Yield all posts, those of `val` last. No two posts share a scene, so no scene is in both splits."""
    for i in range(settings.posts):
        scene = nth_scene(i, settings.seed)
        rng = np.random.default_rng(example_seed(settings.seed, 0, i))
        questions, probabilities = zip(*scene_questions(scene))
        question = questions[rng.choice(len(questions), p=probabilities)]
        post, comments = language.write_post(question, rng), language.write_comments(question, rng)
        jpeg = draw_jpeg(scene, rng, settings.image_size)
        split = "train" if i < settings.posts - settings.val_posts else "val"
        yield SamplePost(f"w{settings.seed}-{i:06d}", split, post, comments, question_extras(question, scene), jpeg)


def write_store(out: Path, posts: Iterable[SamplePost], settings: SampleSettings) -> None:
    """Write a store."""
    tokenizer = train_tokenizer(language.vocabulary_texts(), VOCAB_SIZE)
    about: dict[str, Any] = {
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


def write_raw(folder: Path, posts: Iterable[SamplePost], settings: SampleSettings) -> None:
    """Write `lines.txt`, `images/<id>.jpg` and `extras.jsonl`, as `cromic-ds prepare` reads them."""
    (folder / "images").mkdir()
    with (
        (folder / "lines.txt").open("w", encoding="utf-8", newline="\n") as lines,
        (folder / "extras.jsonl").open("w", encoding="utf-8", newline="\n") as extras,
    ):
        for post in posts:
            lines.write(format_line(post.id, post.post, post.comments) + "\n")
            about = {"id": post.id, "split": post.split, **post.extras}
            extras.write(json.dumps(about, ensure_ascii=False) + "\n")
            (folder / "images" / f"{post.id}.jpg").write_bytes(post.jpeg)


def write_published(folder: Path, posts: Iterable[SamplePost], settings: SampleSettings) -> None:
    """Write `<split>.pt`, `<split>_image_lmdb` and `vocab.txt`. Ids end with a space, as in the published files."""
    import torch

    tokenizer = train_tokenizer(language.vocabulary_texts(), VOCAB_SIZE)
    vocabulary = tokenizer.get_vocab()
    lines = "".join(f"{token}\n" for token in sorted(vocabulary, key=lambda token: vocabulary[token]))
    (folder / "vocab.txt").write_text(lines, encoding="utf-8", newline="\n")
    map_size = (1 << 20) + settings.posts * (settings.image_size**2 + 8192)  # one byte per pixel is ample for JPEGs
    for split, group in groupby(posts, key=lambda post: post.split):
        content: dict[str, Any] = {"all_did": [], "did2post": {}, "did2cmts": {}}
        images = lmdb.open(str(folder / f"{split}_image_lmdb"), map_size=map_size, lock=False)
        with images, images.begin(write=True) as transaction:
            for post in group:
                id = f"{post.id} "
                encoded, *comments = encode(tokenizer, [post.post, *post.comments], POST_TOKENS)
                content["all_did"].append(id)
                content["did2post"][id] = _padded(encoded, POST_TOKENS)
                content["did2cmts"][id] = [_padded(comment, COMMENT_TOKENS) for comment in comments]
                transaction.put(id.encode(), post.jpeg, append=True)
        torch.save(content, folder / f"{split}.pt")


def _padded(tokens: np.ndarray, length: int) -> list[int]:
    return tokens.tolist() + [0] * (length - len(tokens))
