"""Preparation's second pass: shards made independently of each other, by as many processes as wanted."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from cromic_ds.data.images import BadImage, reencode
from cromic_ds.data.record import Record, token_dtype
from cromic_ds.data.reject_reasons import EMPTY_POST, NO_COMMENTS
from cromic_ds.data.tokenizer import cut, encode_fast
from cromic_ds.errors import UserError
from cromic_ds.prepare.corpus import Corpus, Post
from cromic_ds.prepare.extras import ExtrasSource
from cromic_ds.prepare.rejects import reject_line
from cromic_ds.prepare.scan import read_entries
from cromic_ds.prepare.store_writer import ShardInfo, ShardWriter

MISSING_IMAGE = "missing image"

_CHUNK = 64  # records between two reports of progress

Report = Callable[[int, int], None]  # called with the records just done, and how many of them were rejected


@dataclass(frozen=True)
class ShardJob:
    """Shard `number` of a split holds the split's entries [start, stop), less what turns out to be unusable."""

    split: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


@dataclass
class ShardMaker:
    """All that a process needs to make any shard. Picklable."""

    corpus: Corpus
    extras: ExtrasSource | None
    tokenizer_file: Path
    vocab_size: int
    short_side: int
    jpeg_quality: int
    max_post_tokens: int
    max_comment_tokens: int
    out: Path
    work: Path

    def finished(self, job: ShardJob) -> ShardInfo | None:
        """What became of a job, None while it is not done."""
        file = self._info_file(job)
        return ShardInfo(**json.loads(file.read_text())) if file.exists() else None

    def make(self, job: ShardJob, report: Report) -> None:
        """Write the shard; its info file, written last, says that it is finished."""
        tokenizer = self._tokenizer()
        entries = read_entries(self.work / "scan", job.split, job.start, job.stop).tolist()
        writer = ShardWriter(self.out / job.split, job.number, token_dtype(self.vocab_size))
        bad_images: dict[str, str] = {}
        with rejects_file(self.work, job).open("w", encoding="utf-8") as rejects:
            for start in range(0, len(entries), _CHUNK):
                chunk = entries[start : start + _CHUNK]
                posts = [self.corpus.read(file, position) for file, _, position, _ in chunk]
                rejected = 0
                for (file, line, _, _), post, tokens in zip(chunk, posts, self._tokens(tokenizer, posts)):
                    reason = self._add(writer, bad_images, file, post, *tokens)
                    if reason:
                        rejected += 1
                        rejects.write(reject_line(self.corpus.files[file], line, post.id, reason))
                rejects.flush()
                report(len(chunk), rejected)
        aside = self._info_file(job).with_suffix(".tmp")
        aside.write_text(json.dumps(asdict(writer.close())))
        aside.rename(self._info_file(job))

    def _add(
        self,
        writer: ShardWriter,
        bad_images: dict[str, str],
        file: int,
        post: Post,
        post_tokens: np.ndarray,
        comment_tokens: list[np.ndarray],
    ) -> str:
        """Append one post to the shard; returns why not, or an empty string."""
        # Text of nothing but control characters leaves [CLS] [SEP]. No text at all is how the task is.
        comments = [(text, tokens) for text, tokens in zip(post.comments, comment_tokens) if len(tokens) > 2]
        if 0 < len(post_tokens) <= 2:
            return EMPTY_POST
        if post.comments and not comments:
            return NO_COMMENTS
        image = None
        if post.image_id in bad_images:
            return bad_images[post.image_id]
        if not writer.has_image(post.image_id):
            try:
                image = self._image(file, post)
            except BadImage as error:
                return bad_images.setdefault(post.image_id, str(error))
        record = Record(
            id=post.id,
            post=post.post,
            comments=[text for text, _ in comments],
            post_tokens=post_tokens,
            comment_tokens=[tokens for _, tokens in comments],
            extras=post.extras | (self.extras.get(post.id) if self.extras else {}),
            image_id=post.image_id,
            answers=post.answers,
        )
        writer.add(record, image)
        return ""

    def _image(self, file: int, post: Post) -> bytes:
        encoded = self.corpus.image(file, post)
        if encoded is None:
            raise BadImage(MISSING_IMAGE)
        return reencode(encoded, self.short_side, self.jpeg_quality)

    def _tokens(self, tokenizer: Tokenizer, posts: list[Post]) -> list[tuple[np.ndarray, list[np.ndarray]]]:
        """(post, comments) as token ids, cut to their maxima."""
        new = [post for post in posts if post.tokens is None]
        post_tokens = iter(encode_fast(tokenizer, [post.post for post in new], self.max_post_tokens))
        comments = [comment for post in new for comment in post.comments]
        comment_tokens = iter(encode_fast(tokenizer, comments, self.max_comment_tokens))
        return [
            (cut(post.tokens[0], self.max_post_tokens), [cut(c, self.max_comment_tokens) for c in post.tokens[1]])
            if post.tokens
            else (next(post_tokens)[: None if post.post else 0], [next(comment_tokens) for _ in post.comments])
            for post in posts
        ]

    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _info_file(self, job: ShardJob) -> Path:
        return self.work / f"{job.name}.json"


def rejects_file(work: Path, job: ShardJob) -> Path:
    return work / f"{job.name}.rejects.jsonl"


def run_jobs(maker: ShardMaker, jobs: list[ShardJob], workers: int, report: Report) -> None:
    """Make all shards. `report` is called in this process; when it raises, the other processes are ended."""
    workers = min(workers, len(jobs))
    if workers > 1:
        _run_in_processes(maker, jobs, workers, report)
    else:
        for job in jobs:
            maker.make(job, report)


def _run_in_processes(maker: ShardMaker, jobs: list[ShardJob], workers: int, report: Report) -> None:
    context = multiprocessing.get_context("spawn")
    next_job, done, rejected = (context.Value("q", 0) for _ in range(3))
    errors = context.SimpleQueue()
    arguments = (maker, jobs, next_job, done, rejected, errors)
    processes = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(workers)]
    reported = (0, 0)
    try:
        for process in processes:
            process.start()
        running = True
        while running:
            # Asked before the look at the exit codes, so that a process which ends in between is looked at once more.
            running = any(process.is_alive() for process in processes)
            wait([process.sentinel for process in processes if process.is_alive()], timeout=0.2)
            now = (done.value, rejected.value)
            report(now[0] - reported[0], now[1] - reported[1])
            reported = now
            if failed := [process for process in processes if process.exitcode not in (None, 0)]:
                raise _failure(failed[0].exitcode, errors)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            if process.pid:
                process.join()


def _failure(exit_code: int, errors) -> Exception:
    if not errors.empty():
        is_users, text = errors.get()
        return UserError(text) if is_users else RuntimeError(f"a worker process failed:\n{text}")
    return UserError(
        f"a worker process was killed (exit code {exit_code}), most likely for lack of memory; "
        "run the same command again to continue, with fewer workers"
    )


def _work(maker: ShardMaker, jobs: list[ShardJob], next_job, done, rejected, errors) -> None:
    """One process: take jobs until there are none left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # There is a process for each core already.
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

    def report(records: int, bad: int) -> None:
        with done.get_lock():
            done.value += records
            rejected.value += bad

    try:
        while True:
            with next_job.get_lock():
                number, next_job.value = next_job.value, next_job.value + 1
            if number >= len(jobs):
                return
            maker.make(jobs[number], report)
    except Exception as error:  # whatever it is, the parent has to hear of it
        errors.put(
            (isinstance(error, UserError), str(error) if isinstance(error, UserError) else traceback.format_exc())
        )
        raise SystemExit(1) from None


def _die_with_parent() -> None:
    """A parent killed by SIGKILL leaves its children running, and they would write into what the next run resumes."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
