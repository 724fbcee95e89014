"""An export at work: the model on the best device in the right precision, and its texts for the records of a data set."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cromic_ds.batch import Batch
from cromic_ds.data.dataset import Dataset
from cromic_ds.data.loader import DataSettings, eval_batches
from cromic_ds.data.order import example_seed
from cromic_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from cromic_ds.errors import UserError, nearest
from cromic_ds.files import file_digest
from cromic_ds.inference.decoding import DecodingSettings
from cromic_ds.inference.exports import ANSWERS, load_export, read_answers
from cromic_ds.inference.scoring import predict
from cromic_ds.models.common.kernels import install, select
from cromic_ds.models.common.precision import AUTOCAST, choose_precision
from cromic_ds.progress import ProgressBar
from cromic_ds.ranks.launcher import local_device
from cromic_ds.tasks import TASKS, Task
from cromic_ds.tasks.base import check_task


@dataclass
class Loaded:
    """A model to generate and score with."""

    path: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: dict  # of the export: task, token limits, tokenizer fingerprint, step
    precision: str
    answers: list[str] | None = None  # the vocabulary of its answer head

    @property
    def image_size(self) -> int:
        """Side of the crops in pixels; 0 where the model reads no images."""
        return self.model.image_size

    def identity(self) -> dict:
        """What tells it from other models, wherever it lies: a hash of the weights, and what it was trained with."""
        return {"weights": weights_fingerprint(self.path), "precision": self.precision, **self.facts}

    @contextlib.contextmanager
    def running(self) -> Iterator[PreTrainedModel]:
        """The model without gradients and under autocast."""
        enabled = self.precision in AUTOCAST
        dtype = getattr(torch, AUTOCAST.get(self.precision, "bfloat16"))
        with torch.inference_mode(), torch.autocast(self.model.device.type, dtype=dtype, enabled=enabled):
            yield self.model


@dataclass
class InferenceSettings(DecodingSettings):
    """A model, the records that it answers, and how texts are generated."""

    export: str = ""
    """Export folder."""
    task: str | None = None
    """comments, fmiqa, vqa2, aic_icc, flickr30k_cn or muge; without it, the task that the export was trained for."""
    data: str = ""
    """Store, or folder in the published layout."""
    split: str = ""
    """Split of the data."""
    batch: int = 32
    """Records in one batch."""
    seed: int = 0
    """Seed of everything drawn at random."""
    precision: str = "auto"
    """bf16, fp16, fp32 or auto."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        super().check()
        if not self.data:
            raise UserError("--data is missing: name the store of the records")
        if self.batch < 1:
            raise UserError(f"--batch {self.batch} must be at least 1")
        if self.task is not None:
            find_task(self.task, "--task")


def find_task(name: str, where: str) -> Task:
    """Raises UserError where there is none of that name."""
    if name not in TASKS:
        raise UserError(f"{where}: no task {name!r}{nearest(name, TASKS)}; one of {', '.join(TASKS)}")
    return TASKS[name]


@dataclass(slots=True)
class Answered:
    """What the model says to a record."""

    index: int  # in the data set
    text: str
    problem: str | None = None  # why the record could not be read; its text is then empty


class Job:
    """A model and a data set that fit together."""

    def __init__(self, loaded: Loaded, dataset: Dataset, settings: InferenceSettings):
        """Raises UserError where the data is of another task, tokenizer or answer vocabulary than the model."""
        self.loaded, self.dataset, self.settings = loaded, dataset, settings
        self.task = find_task(settings.task or loaded.facts.get("task", "comments"), str(loaded.path))
        self._check()
        limits = {k: loaded.facts[k] for k in ("max_post_tokens", "max_comment_tokens") if k in loaded.facts}
        self.data = DataSettings(path=settings.data, eval_comments_per_post=None, **limits)

    def _check(self) -> None:
        loaded, path = self.loaded, self.settings.data
        check_task(self.task, self.dataset, path)
        trained_with = tokenizer_fingerprint(loaded.tokenizer)
        if tokenizer_fingerprint(load_tokenizer(self.dataset.tokenizer_path)) != trained_with:
            raise UserError(
                f"{path} was prepared with another tokenizer than the model's: prepare it with "
                f"--tokenizer {loaded.path}"
            )
        if self.task.kind == "classify":
            if loaded.answers is None:
                raise UserError(f"{loaded.path} has no answer head (no {ANSWERS}): fine-tune it on {self.task.name}")
            if loaded.answers != self.dataset.answers:
                raise UserError(
                    f"{path} was prepared with another answer vocabulary than the model's: prepare it with "
                    f"--answers {loaded.path / ANSWERS}"
                )

    @property
    def answers(self) -> list[str] | None:
        """The answers to choose from, where the task is to choose."""
        return self.loaded.answers if self.task.kind == "classify" else None

    @property
    def decoding(self) -> DecodingSettings:
        """How texts are generated, the task's length filled in."""
        values = {f.name: getattr(self.settings, f.name) for f in fields(DecodingSettings)}
        values["max_new_tokens"] = values["max_new_tokens"] or self.task.max_comment_tokens
        return DecodingSettings(**values)

    def batches(self, limit: int = 0, done: int = 0) -> Iterator[Batch]:
        """The first `limit` records (0 = all), in their order, without the first `done`, whole batches."""
        return eval_batches(
            self.dataset,
            self.data,
            image_size=self.loaded.image_size,
            micro_batch=self.settings.batch,
            rank=0,
            world_size=1,
            limit=limit,
            n_answers=len(self.answers or ()),
            first_batch=-(-done // self.settings.batch),
        )

    def loss_sum(self, batch: Batch) -> float:
        """Σ NLL of a batch's target tokens, in nats."""
        if not batch.n_targets:
            return 0.0
        with self.loaded.running() as model:
            return float(model(batch.to(model.device)))

    def run(self, limit: int = 0, done: int = 0) -> Iterator[list[Answered]]:
        """The answers to the first `limit` records (0 = all) batch by batch, with a progress bar.

        A batch's answers depend on nothing but its records and the settings, so that the first `done` records, whole
        batches, can be left out of a run that goes on.

        Raises:
            UserError: more records than `DataSettings.max_skip_rate` cannot be read.
        """
        total = min(limit, len(self.dataset)) if limit else len(self.dataset)
        unreadable = 0
        with ProgressBar(f"{self.task.name} {self.dataset.split}", total, "records", done) as bar:
            for batch in self.batches(limit, done):
                size = min(self.settings.batch, total - done)
                answered = self._answer(batch, range(done, done + size))
                unreadable += len(batch.skipped)
                if unreadable > self.data.max_skip_rate * total:
                    name, reason = batch.skipped[-1]
                    raise UserError(
                        f"{unreadable} of {total} records of {self.settings.data} cannot be read (more than "
                        f"{self.data.max_skip_rate:.0%}), the last: {name!r} {reason}; prepare it again"
                    )
                yield answered
                done += size
                bar.update(done)

    def _answer(self, batch: Batch, indices: range) -> list[Answered]:
        torch.manual_seed(example_seed(self.settings.seed, 0, indices.start))
        with self.loaded.running() as model:
            texts = predict(model, self.loaded.tokenizer, [batch], self.decoding, self.answers)
        problems = iter(f"{name}: {reason}" for name, reason in batch.skipped)  # in the records' order
        return [Answered(i, texts[i][0]) if i in texts else Answered(i, "", next(problems)) for i in indices]


def output_file(path: Path) -> Path:
    """Make the folder of a file that will be written, before any work is done for it.

    Raises:
        UserError: the folder cannot be made, or the path is a folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror})") from None
    if path.is_dir():
        raise UserError(f"--out {path} is a folder: name a file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--out {path}: cannot be written (no permission for the folder)")
    return path


def load(path: str, precision: str = "auto") -> Loaded:
    """Raises UserError where `path` is no export or the precision does not work here."""
    chosen = choose_precision(precision, local_device())
    model, tokenizer, facts = load_export(path)
    install(model, select(local_device()))
    return Loaded(Path(path), model, tokenizer, facts, chosen, read_answers(Path(path)))


def weights_fingerprint(export: Path) -> str:
    """A hash over all weight files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(export.glob("*.safetensors")):
        digest.update(file_digest(path)["blake2b"].encode())
    return digest.hexdigest()
