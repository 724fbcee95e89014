"""`cromic-ds prepare` makes a store of raw lines and images, of the published layout, or of a task's official files.

A first pass over the text finds the usable lines (scan.py); then each shard is made independently from its range of
entries (shards.py). All files are in OUT.partial until the end. After an interruption the same command resumes and keeps
the finished shards. The result depends only on the input and the settings, not on the number of workers or interruptions.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cromic_ds.data.sources import ExtrasSource, open_source
from cromic_ds.data.store import is_store, read_meta
from cromic_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_tokenizer
from cromic_ds.errors import UserError
from cromic_ds.files import exclusive, read_json, write_json
from cromic_ds.prepare.answer_vocabulary import vocabulary
from cromic_ds.prepare.corpus import Corpus, PublishedCorpus
from cromic_ds.prepare.official import OfficialCorpus, open_reader
from cromic_ds.prepare.raw_lines import TextCorpus
from cromic_ds.prepare.rejects import REJECTS_FILE, list_reasons, merge_rejects
from cromic_ds.prepare.scan import ScanCounts, counts_file, image_boundary, read_scan_entries, scan
from cromic_ds.prepare.settings import PrepareSettings
from cromic_ds.prepare.shards import ShardJob, ShardMaker, rejects_file, run_jobs
from cromic_ds.prepare.store_writer import ShardInfo, partial_folder, refuse_existing, write_meta
from cromic_ds.progress import ProgressBar
from cromic_ds.tasks import TASKS
from cromic_ds.tasks.reader import OfficialReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MAY_CHANGE = ("out", "workers", "max_reject_rate")  # settings that a resumed preparation may have changed
_FILES = ("text", "images", "published", "root", "answers", "extras")
_TRAIN_TOKENIZER_ON = 200_000  # posts with their comments, evenly spread: more would not change the vocabulary much


def prepare(settings: PrepareSettings) -> None:
    """Make the store `settings.out`. Raises UserError; finished shards stay in OUT.partial for the next call."""
    out = Path(settings.out)
    refuse_existing(out)
    partial = partial_folder(out)
    work = partial / "work"
    with _only_one(work):
        try:
            if not is_store(partial):
                _build(settings, partial, work)
        except UserError:
            if not counts_file(work / "scan").exists():  # there is nothing yet to resume or to look into
                shutil.rmtree(partial)
            raise
        shutil.rmtree(work)
    partial.rename(out)
    _report(out)


def _build(settings: PrepareSettings, partial: Path, work: Path) -> None:
    for leftover in partial.glob(".*.writing"):  # of a process that was killed; see files.replacing
        leftover.unlink()
    trained = settings.tokenizer == "train"
    tokenizer = load_tokenizer(settings.tokenizer) if settings.tokenizer and not trained else None
    reader = open_reader(settings.task, settings.root, settings.split, settings.answers) if settings.task else None
    _refuse_other_settings(settings, tokenizer, reader.inputs() if reader else [], work / "settings.json")
    corpus = _open_corpus(settings, tokenizer, reader, work)
    extras = ExtrasSource(Path(settings.extras), work) if settings.extras else None
    counts = scan(corpus, work / "scan", 0 if reader else settings.val_fraction)
    if counts.rejected > settings.max_reject_rate * counts.lines or not any(counts.records.values()):
        raise _too_many_rejects(settings, counts.lines, _merge_rejects(corpus, [], partial), partial)

    if tokenizer is None and corpus.tokenizer_path and not trained:
        tokenizer = load_tokenizer(corpus.tokenizer_path)
    elif tokenizer is None:
        tokenizer = _trained_tokenizer(settings, corpus, counts.records, work)
    tokenizer.save_pretrained(partial / "tokenizer")
    task = TASKS[settings.task or "comments"]
    max_post_tokens = settings.max_post_tokens or task.max_post_tokens
    max_comment_tokens = settings.max_comment_tokens or task.max_comment_tokens
    maker = ShardMaker(
        corpus=corpus,
        extras=extras,
        tokenizer_file=partial / "tokenizer" / "tokenizer.json",
        vocab_size=len(tokenizer),
        short_side=settings.short_side,
        jpeg_quality=settings.jpeg_quality,
        max_post_tokens=max_post_tokens,
        max_comment_tokens=max_comment_tokens,
        out=partial,
        work=work,
    )
    jobs = _jobs(corpus, counts.records, settings.records_per_shard, work)
    try:
        _make_shards(maker, jobs, settings, counts)
    except _TooManyRejects:
        raise _too_many_rejects(settings, counts.lines, _merge_rejects(corpus, jobs, partial), partial) from None
    shards: dict[str, list[ShardInfo]] = {}
    for job in jobs:
        if info := maker.finished(job):
            shards.setdefault(job.split, []).append(info)
    about = {"task": settings.task} if settings.task else {}
    write_meta(
        partial,
        tokenizer,
        shards,
        corpus.answers,
        **about,
        image_short_side=settings.short_side,
        jpeg_quality=settings.jpeg_quality,
        max_post_tokens=max_post_tokens,
        max_comment_tokens=max_comment_tokens,
        lines=counts.lines,
        rejects=_merge_rejects(corpus, jobs, partial),
    )


@contextmanager
def _only_one(work: Path) -> Iterator[None]:
    """Hold the lock of the work folder. Raises UserError if another process holds it."""
    work.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(work / "lock"))
        except BlockingIOError:
            raise UserError(f"{work.parent}: another process is preparing this store") from None
        yield


def _refuse_other_settings(
    settings: PrepareSettings, tokenizer: PreTrainedTokenizerFast | None, inputs: list[Path], file: Path
) -> None:
    """Raise UserError if the unfinished preparation had other input or settings; `file` keeps what it had."""
    now: dict[str, Any] = {name: value for name, value in asdict(settings).items() if name not in _MAY_CHANGE}
    now["tokenizer"] = tokenizer_fingerprint(tokenizer) if tokenizer else settings.tokenizer
    for name in _FILES:
        paths = now[name] if isinstance(now[name], list) else [now[name]]
        now[name] = [_identity(path) for path in paths if path]
    now["official files"] = [_identity(path) for path in inputs]
    now = json.loads(json.dumps(now))
    if not file.exists():
        write_json(file, now, indent=1)
        return
    before = read_json(file)
    for name, value in now.items():
        if before.get(name) != value:
            was = f"was {before.get(name)}, is {value}" if isinstance(value, (int, float)) else "has changed"
            raise UserError(
                f"{file.parent.parent}: an unfinished preparation with other settings ({name} {was}); "
                "use the same, or remove that folder to start again"
            )


def _identity(path: str | Path) -> list[str | int]:
    """Return the path of a file or folder, and for a file also its size and time of change."""
    resolved = Path(path).resolve()
    if not resolved.is_file():
        return [str(resolved)]
    status = resolved.stat()
    return [str(resolved), status.st_size, status.st_mtime_ns]


def _open_corpus(
    settings: PrepareSettings, tokenizer: PreTrainedTokenizerFast | None, reader: OfficialReader | None, work: Path
) -> Corpus:
    if reader:
        classified = TASKS[settings.task].kind == "classify"
        answers = vocabulary(reader, settings.answers, settings.min_answer_count, work) if classified else None
        return OfficialCorpus(reader, answers, work)
    if settings.text:
        return TextCorpus(settings.text, open_source(settings.images, work))
    corpus = PublishedCorpus(settings.published)
    if settings.tokenizer and corpus.tokenizer_path:
        own = tokenizer_fingerprint(load_tokenizer(corpus.tokenizer_path))
        corpus.keep_tokens = tokenizer is not None and tokenizer_fingerprint(tokenizer) == own
    return corpus


def _trained_tokenizer(
    settings: PrepareSettings, corpus: Corpus, records: dict[str, int], work: Path
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on the corpus, unless an interrupted run has done so."""
    aside = work / "tokenizer"
    if not (aside / "tokenizer_config.json").exists():
        step = max(1, sum(records.values()) // _TRAIN_TOKENIZER_ON)

        def texts() -> Iterator[str]:
            for split, n in records.items():
                for start in range(0, n, step):
                    for file, _, position in read_scan_entries(work / "scan", split, start, start + 1):
                        post = corpus.read(file, position)
                        yield post.post
                        yield from post.comments

        train_tokenizer(texts(), settings.vocab_size).save_pretrained(aside)
    return load_tokenizer(aside)


def _jobs(corpus: Corpus, records: dict[str, int], per_shard: int, work: Path) -> list[ShardJob]:
    jobs = []
    for split, n in records.items():
        number = start = 0
        while start < n:
            stop = image_boundary(corpus, work / "scan", split, min(start + per_shard, n), n)
            jobs.append(ShardJob(split, number, start, stop))
            number, start = number + 1, stop
    return jobs


def _make_shards(maker: ShardMaker, jobs: list[ShardJob], settings: PrepareSettings, counts: ScanCounts) -> None:
    """Make the shards that are not finished. Raises _TooManyRejects."""
    finished = {job: info for job in jobs if (info := maker.finished(job))}
    done = sum(job.stop - job.start for job in finished)
    rejected = counts.rejected + sum(job.stop - job.start - info.records for job, info in finished.items())
    total = sum(job.stop - job.start for job in jobs)
    with ProgressBar("prepare", total, "records", done) as bar:

        def report(records: int, bad: int) -> None:
            nonlocal done, rejected
            done, rejected = done + records, rejected + bad
            bar.update(done, f"{rejected:,} rejected")
            if rejected > settings.max_reject_rate * counts.lines:
                raise _TooManyRejects

        report(0, 0)
        workers = settings.workers or os.cpu_count() or 1
        run_jobs(maker, [job for job in jobs if job not in finished], workers, report)


class _TooManyRejects(Exception):
    """More lines have been rejected than `max_reject_rate` allows."""


def _merge_rejects(corpus: Corpus, jobs: list[ShardJob], partial: Path) -> dict[str, int]:
    work = partial / "work"
    parts = [work / "scan" / REJECTS_FILE, *(rejects_file(work, job) for job in jobs)]
    return merge_rejects(parts, corpus.files, partial / REJECTS_FILE, work)


def _too_many_rejects(settings: PrepareSettings, lines: int, reasons: dict[str, int], partial: Path) -> UserError:
    of = f"{sum(reasons.values()):,} of {lines:,}"
    return UserError(
        f"{of} lines cannot be used, more than max_reject_rate {settings.max_reject_rate:g} allows: "
        f"{list_reasons(reasons)}; see {partial / REJECTS_FILE}, then correct the input or allow more"
    )


def _report(out: Path) -> None:
    meta = read_meta(out)
    posts, comments = ("records", "answers or captions") if "task" in meta else ("posts", "comments")
    splits = [
        f"{split} {counts['records']:,} {posts}"
        + (f" with {counts['comments']:,} {comments}" if counts["comments"] else "")
        for split, counts in meta["splits"].items()
    ]
    print(f"store {out}: {'; '.join(splits)}")
    if rejects := meta["rejects"]:
        rejected = sum(rejects.values())
        print(f"{rejected:,} of {meta['lines']:,} lines rejected ({list_reasons(rejects)}): {out / REJECTS_FILE}")
