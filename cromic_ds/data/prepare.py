"""`cromic-ds prepare`: raw lines and images, or the published layout, to a store.

A first pass over the text finds what is usable (scan.py); then each shard is made on its own, by any process, from its
range of entries. All of it happens in OUT.partial, where finished shards stay finished: the same command after a kill
continues. The result depends on the input and the settings only, not on the number of workers or interruptions.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cromic_ds.data.corpus import Corpus, PublishedCorpus, TextCorpus
from cromic_ds.data.progress import ProgressBar
from cromic_ds.data.scan import read_entries, scan
from cromic_ds.data.shards import ShardJob, ShardMaker, rejects_file, run_jobs
from cromic_ds.data.sources import ExtrasSource, open_source
from cromic_ds.data.store import partial_folder, read_meta, refuse_existing, write_meta
from cromic_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_tokenizer
from cromic_ds.errors import UserError

REJECTS_FILE = "rejects.jsonl"

_TRAIN_TOKENIZER_ON = 200_000  # posts with their comments, evenly spread: enough for a vocabulary, and bounded


@dataclass
class PrepareSettings:
    """What is prepared, and how it is stored."""

    text: list[str] = field(default_factory=list)
    """Files of raw lines `<id> #EOS# <post> #EOS# <comment> #EOC# <comment> ...` in UTF-8."""
    images: str = ""
    """Folder of files named <id>.<extension>, LMDB folder with the ids as keys, or TSV file of <id> TAB <base64>."""
    published: str = ""
    """Folder (or .pt file) in the published layout, instead of text and images."""
    tokenizer: str = ""
    """vocab.txt, tokenizer folder, name on the Hub, or "train" for a vocabulary of this corpus; with `published` it may be
    left out, which keeps the token ids as they are."""
    out: str = ""
    """Store folder to be made."""
    extras: str = ""
    """File of JSON lines {"id": ..., ...}: further fields to be stored with the post of that id; empty = none."""
    short_side: int = 256
    """Shorter side of the stored images in pixels."""
    jpeg_quality: int = 90
    """JPEG quality of the stored images, 1 to 100."""
    records_per_shard: int = 10_000
    """Posts per shard: the unit of parallel work and of resuming."""
    val_fraction: float = 0.01
    """Share of the posts in split val, chosen by a hash of the id; the published layout's own splits are kept."""
    max_post_tokens: int = 40
    """Longest stored post in tokens, [CLS] and [SEP] included; longer ones are cut."""
    max_comment_tokens: int = 25
    """Longest stored comment in tokens, [CLS] and [SEP] included; longer ones are cut."""
    vocab_size: int = 21_128
    """Most tokens of the vocabulary that `--tokenizer train` makes."""
    max_reject_rate: float = 0.1
    """Share of the lines that may be unusable before the preparation stops."""
    workers: int = 0
    """Processes; 0 = one for each core."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if not self.out:
            raise UserError("out is missing: give the store folder to be made")
        if bool(self.published) == bool(self.text):
            raise UserError("give either text (with images) or published")
        if self.text and not self.images:
            raise UserError("images is missing: give the image folder, LMDB or TSV that belongs to the text")
        if self.published and self.images:
            raise UserError("images does not go with published, which has its own")
        if self.text and not self.tokenizer:
            raise UserError('tokenizer is missing: give a vocab.txt, a tokenizer folder, a name on the Hub, or "train"')
        bounds = {
            "short_side": (16, 4096),
            "jpeg_quality": (1, 100),
            "vocab_size": (100, 10_000_000),
            "records_per_shard": (1, 10_000_000),
            "val_fraction": (0, 0.5),
            "max_post_tokens": (3, 65_535),
            "max_comment_tokens": (3, 65_535),
            "max_reject_rate": (0, 1),
            "workers": (0, 4096),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name} is {getattr(self, name)}: it must be between {low} and {high}")


def prepare(settings: PrepareSettings) -> None:
    """Make the store `settings.out`. Raises UserError; what is finished stays in OUT.partial for the next call."""
    settings.check()
    out = Path(settings.out)
    refuse_existing(out)
    partial = partial_folder(out)
    work = partial / "work"
    with _only_one(work):
        try:
            if not (partial / "store.json").exists():
                _build(settings, partial, work)
        except UserError:
            if not (work / "scan" / "counts.json").exists():  # nothing yet that is worth resuming, or looking into
                shutil.rmtree(partial)
            raise
        shutil.rmtree(work)
    partial.rename(out)
    _report(out)


def _build(settings: PrepareSettings, partial: Path, work: Path) -> None:
    trained = settings.tokenizer == "train"
    tokenizer = load_tokenizer(settings.tokenizer) if settings.tokenizer and not trained else None
    _check_settings(settings, tokenizer, work / "settings.json")
    corpus = _open_corpus(settings, tokenizer, work)
    extras = ExtrasSource(Path(settings.extras), work) if settings.extras else None
    counts = scan(corpus, work / "scan", settings.val_fraction)
    most_rejects = settings.max_reject_rate * counts["lines"]
    if counts["rejected"] > most_rejects or not any(counts["records"].values()):
        raise _too_many_rejects(settings, corpus, counts["lines"], [], partial, work)

    if trained:
        tokenizer = _trained_tokenizer(settings, corpus, counts["records"], partial, work)
    elif tokenizer is None:
        tokenizer = load_tokenizer(corpus.tokenizer_path)
    tokenizer.save_pretrained(partial / "tokenizer")
    maker = ShardMaker(
        corpus=corpus,
        extras=extras,
        tokenizer_file=partial / "tokenizer" / "tokenizer.json",
        vocab_size=len(tokenizer),
        short_side=settings.short_side,
        jpeg_quality=settings.jpeg_quality,
        max_post_tokens=settings.max_post_tokens,
        max_comment_tokens=settings.max_comment_tokens,
        out=partial,
        work=work,
    )
    jobs = _jobs(counts["records"], settings.records_per_shard)
    if not _make_shards(maker, jobs, settings, counts["rejected"], most_rejects):
        raise _too_many_rejects(settings, corpus, counts["lines"], jobs, partial, work)
    shards: dict[str, list] = {}
    for job in jobs:
        shards.setdefault(job.split, []).append(maker.finished(job))
    write_meta(
        partial,
        tokenizer,
        shards,
        image_short_side=settings.short_side,
        jpeg_quality=settings.jpeg_quality,
        max_post_tokens=settings.max_post_tokens,
        max_comment_tokens=settings.max_comment_tokens,
        lines=counts["lines"],
        rejects=_merge_rejects(corpus, jobs, partial, work),
    )


def _open_corpus(settings: PrepareSettings, tokenizer, work: Path) -> Corpus:
    if settings.text:
        return TextCorpus(settings.text, open_source(settings.images, work))
    corpus = PublishedCorpus(settings.published)
    if settings.tokenizer:
        own = load_tokenizer(corpus.tokenizer_path)
        corpus.keep_tokens = tokenizer is not None and tokenizer_fingerprint(own) == tokenizer_fingerprint(tokenizer)
    return corpus


def _trained_tokenizer(settings: PrepareSettings, corpus: Corpus, records: dict, partial: Path, work: Path):
    """A vocabulary of the corpus; the one that an interrupted run has trained, if there is one."""
    aside = work / "tokenizer"
    if not (aside / "tokenizer_config.json").exists():
        step = max(1, sum(records.values()) // _TRAIN_TOKENIZER_ON)

        def texts() -> Iterator[str]:
            for split, n in records.items():
                for start in range(0, n, step):
                    for file, _, position, _ in read_entries(work / "scan", split, start, start + 1).tolist():
                        raw = corpus.read(file, position).raw
                        yield raw.post
                        yield from raw.comments

        train_tokenizer(texts(), settings.vocab_size).save_pretrained(aside)
    return load_tokenizer(aside)


def _jobs(records: dict[str, int], per_shard: int) -> list[ShardJob]:
    return [
        ShardJob(split, start // per_shard, start, min(start + per_shard, n))
        for split, n in records.items()
        for start in range(0, n, per_shard)
    ]


def _make_shards(
    maker: ShardMaker, jobs: list[ShardJob], settings: PrepareSettings, rejected: int, most_rejects: float
) -> bool:
    """Make the shards that are not finished; False when it stopped because too much was rejected."""
    finished = {job: info for job in jobs if (info := maker.finished(job))}
    done = sum(job.stop - job.start for job in finished)
    rejected += sum(job.stop - job.start - info.records for job, info in finished.items())
    total = sum(job.stop - job.start for job in jobs)
    with ProgressBar("prepare", total, "records", done) as bar:

        def report(records: int, bad: int) -> None:
            nonlocal done, rejected
            done, rejected = done + records, rejected + bad
            bar.update(done, f"{rejected:,} rejected")
            if rejected > most_rejects:
                raise _Stop

        try:
            report(0, 0)
            workers = settings.workers or os.cpu_count() or 1
            run_jobs(maker, [job for job in jobs if job not in finished], workers, report)
        except _Stop:
            return False
    return True


class _Stop(Exception):
    """Too much has been rejected."""


def _merge_rejects(corpus: Corpus, jobs: list[ShardJob], partial: Path, work: Path) -> dict[str, int]:
    """All rejects in the order of the input to rejects.jsonl; returns how many there are by reason."""
    order = {file: number for number, file in enumerate(corpus.files)}

    def read(*files: Path) -> Iterator[tuple[int, int, str, str]]:
        for file in files:
            with file.open(encoding="utf-8") if file.exists() else nullcontext(()) as lines:
                for line in lines:
                    if line.endswith("\n"):  # a killed process may leave the last one incomplete
                        entry = json.loads(line)
                        yield order[entry["file"]], entry["line"], entry["reason"], line

    streams = [read(work / "scan" / "unusable.jsonl"), read(work / "scan" / "repeated.jsonl")]
    for split in dict.fromkeys(job.split for job in jobs):
        streams.append(read(*(rejects_file(work, job) for job in jobs if job.split == split)))
    reasons: Counter[str] = Counter()
    aside = partial / f"{REJECTS_FILE}.tmp"
    with aside.open("w", encoding="utf-8") as merged:
        for _, _, reason, line in heapq.merge(*streams):
            reasons[reason] += 1
            merged.write(line)
    aside.rename(partial / REJECTS_FILE)
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def _too_many_rejects(
    settings: PrepareSettings, corpus: Corpus, lines: int, jobs: list[ShardJob], partial: Path, work: Path
) -> UserError:
    reasons = _merge_rejects(corpus, jobs, partial, work)
    rejected = sum(reasons.values())
    return UserError(
        f"{rejected:,} of {lines:,} lines cannot be used, more than max_reject_rate {settings.max_reject_rate:g} allows: "
        f"{_list_reasons(reasons)}; see {partial / REJECTS_FILE}, then correct the input or allow more"
    )


def _list_reasons(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in list(reasons.items())[:4]) or "the input is empty"


def _check_settings(settings: PrepareSettings, tokenizer, file: Path) -> None:
    """Refuse to continue a run whose input or settings were others."""
    free = ("out", "workers", "max_reject_rate")
    now = {name: value for name, value in asdict(settings).items() if name not in free}
    now["tokenizer"] = tokenizer_fingerprint(tokenizer) if tokenizer else settings.tokenizer
    for name in ("text", "images", "published", "extras"):
        paths = now[name] if isinstance(now[name], list) else [now[name]]
        now[name] = [_identity(path) for path in paths if path]
    now = json.loads(json.dumps(now))
    if not file.exists():
        aside = file.with_suffix(".tmp")
        aside.write_text(json.dumps(now, ensure_ascii=False, indent=1), encoding="utf-8")
        aside.rename(file)
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    for name, value in now.items():
        if before.get(name) != value:
            was = f"was {before.get(name)}, is {value}" if isinstance(value, (int, float)) else "has changed"
            raise UserError(
                f"{file.parent.parent}: an unfinished preparation with other settings ({name} {was}); "
                "use the same, or remove that folder to start anew"
            )


def _identity(path: str) -> list:
    """What tells a file from a changed one; for a folder, its name."""
    resolved = Path(path).resolve()
    if not resolved.is_file():
        return [str(resolved)]
    status = resolved.stat()
    return [str(resolved), status.st_size, status.st_mtime_ns]


@contextmanager
def _only_one(work: Path) -> Iterator[None]:
    """Hold the work folder; the lock goes with the process, however that ends."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{work.parent}: another process is preparing this store") from None
        yield


def _report(out: Path) -> None:
    meta = read_meta(out)
    splits = [f"{s} {m['records']:,} posts with {m['comments']:,} comments" for s, m in meta["splits"].items()]
    print(f"store {out}: {'; '.join(splits)}")
    if rejects := meta["rejects"]:
        rejected = sum(rejects.values())
        print(f"{rejected:,} of {meta['lines']:,} lines rejected ({_list_reasons(rejects)}): {out / REJECTS_FILE}")
