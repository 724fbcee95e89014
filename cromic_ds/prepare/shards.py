"""The second pass of preparation: shards, made independently of each other by any number of processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from cromic_ds.data.images import BadImage, reencode
from cromic_ds.data.limits import cut_tokens
from cromic_ds.data.record import Record, token_dtype
from cromic_ds.data.reject_reasons import EMPTY_POST, MISSING_IMAGE, NO_COMMENTS
from cromic_ds.data.sources import ExtrasSource
from cromic_ds.data.tokenizer import encode
from cromic_ds.errors import UserError
from cromic_ds.files import read_json, write_json
from cromic_ds.prepare.corpus import Corpus, Post
from cromic_ds.prepare.rejects import reject_line
from cromic_ds.prepare.scan import read_scan_entries
from cromic_ds.prepare.store_writer import ShardInfo, ShardWriter

_CHUNK = 64  # records between two reports of progress

ReportProgress = Callable[[int, int], None]  # takes the numbers of records just processed and of those rejected


@dataclass(frozen=True)
class ShardJob:
    """Shard `number` of a split, which is made of the split's entries [start, stop)."""

    split: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


@dataclass
class ShardMaker:
    """Makes any shard, in any process. Picklable."""

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
        """Return the description of a finished shard, None if it is not finished."""
        file = self.work / f"{job.name}.json"
        return ShardInfo(**read_json(file)) if file.exists() else None

    def make(self, job: ShardJob, report: ReportProgress) -> None:
        """Write a shard, and last its info file, which marks it as finished."""
        tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        entries = read_scan_entries(self.work / "scan", job.split, job.start, job.stop)
        writer = ShardWriter(self.out / job.split, job.number, token_dtype(self.vocab_size))
        bad_images: dict[str, str] = {}
        with rejects_file(self.work, job).open("w", encoding="utf-8") as rejects:
            for start in range(0, len(entries), _CHUNK):
                chunk = entries[start : start + _CHUNK]
                posts = [self.corpus.read(file, position) for file, _, position in chunk]
                rejected = 0
                for (file, line, _), post, tokens in zip(chunk, posts, self._tokens(tokenizer, posts)):
                    reason = self._add(writer, bad_images, file, post, *tokens)
                    if reason:
                        rejected += 1
                        rejects.write(reject_line(self.corpus.files[file], line, post.id, reason))
                rejects.flush()
                report(len(chunk), rejected)
        write_json(self.work / f"{job.name}.json", asdict(writer.close()))

    def _add(
        self,
        writer: ShardWriter,
        bad_images: dict[str, str],
        file: int,
        post: Post,
        post_tokens: np.ndarray,
        comment_tokens: list[np.ndarray],
    ) -> str:
        """Append one post to the shard. Return an empty string, or the reason for which the post is rejected."""
        # A text of control characters alone becomes [CLS] [SEP]. Tasks without text have no tokens at all.
        comments = [(text, tokens) for text, tokens in zip(post.comments, comment_tokens) if len(tokens) > 2]
        if 0 < len(post_tokens) <= 2:
            return EMPTY_POST
        if post.comments and not comments:
            return NO_COMMENTS
        if post.image_id in bad_images:
            return bad_images[post.image_id]
        image = None
        if not writer.has_image(post.image_id):
            try:
                if (encoded := self.corpus.image(file, post)) is None:
                    raise BadImage(MISSING_IMAGE)
                image = reencode(encoded, self.short_side, self.jpeg_quality)
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

    def _tokens(self, tokenizer: Tokenizer, posts: list[Post]) -> list[tuple[np.ndarray, list[np.ndarray]]]:
        """Return (post, comments) as token ids, cut to the maximum lengths."""
        new = [post for post in posts if post.tokens is None]
        post_tokens = iter(encode(tokenizer, [post.post for post in new], self.max_post_tokens))
        comments = [comment for post in new for comment in post.comments]
        comment_tokens = iter(encode(tokenizer, comments, self.max_comment_tokens))
        return [
            self._cut(*post.tokens)
            if post.tokens
            else (next(post_tokens)[: None if post.post else 0], [next(comment_tokens) for _ in post.comments])
            for post in posts
        ]

    def _cut(self, post: np.ndarray, comments: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        return cut_tokens(post, self.max_post_tokens), [cut_tokens(c, self.max_comment_tokens) for c in comments]


def rejects_file(work: Path, job: ShardJob) -> Path:
    """Return the file of the lines that are rejected while a shard is made."""
    return work / f"{job.name}.rejects.jsonl"


def run_jobs(maker: ShardMaker, jobs: list[ShardJob], workers: int, report: ReportProgress) -> None:
    """Make all shards. `report` is called in this process; if it raises an exception, the other processes are ended."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            maker.make(job, report)
        return
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
            # Checked before the exit codes, so that the loop runs once more for a process that ends in between.
            running = any(process.is_alive() for process in processes)
            wait([process.sentinel for process in processes if process.is_alive()], timeout=0.2)
            now = (done.value, rejected.value)
            report(now[0] - reported[0], now[1] - reported[1])
            reported = now
            if failed := [process for process in processes if process.exitcode not in (None, 0)]:
                if errors.empty():
                    raise UserError(
                        f"a worker process was killed (exit code {failed[0].exitcode}), most likely for lack of memory; "
                        "run the same command again to continue, with fewer workers"
                    )
                is_user_error, text = errors.get()
                raise UserError(text) if is_user_error else RuntimeError(f"a worker process failed:\n{text}")
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            if process.pid:
                process.join()


def _work(
    maker: ShardMaker,
    jobs: list[ShardJob],
    next_job: Synchronized[int],
    done: Synchronized[int],
    rejected: Synchronized[int],
    errors: SimpleQueue[tuple[bool, str]],
) -> None:
    """Take jobs until none is left. Runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ |= {
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }  # there is already a process for each core

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
    except Exception as error:  # the parent reports it
        is_user_error = isinstance(error, UserError)
        errors.put((is_user_error, str(error) if is_user_error else traceback.format_exc()))
        raise SystemExit(1) from None


def _die_with_parent() -> None:
    """End this process with its parent: after a SIGKILL of the parent it would write into what the next run resumes."""
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
    os._exit(1)
