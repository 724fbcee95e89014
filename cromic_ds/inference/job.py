"""A loaded export at work on a data set: batch by batch, the model's texts for its records."""

from collections.abc import Iterator

import torch

from cromic_ds.batch import Batch
from cromic_ds.data.dataset import Dataset
from cromic_ds.data.loader import DataSettings, eval_batches
from cromic_ds.data.order import example_seed
from cromic_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from cromic_ds.errors import UserError
from cromic_ds.inference.decoding import decoding_for
from cromic_ds.inference.loaded import LoadedExport
from cromic_ds.inference.partial_predictions import AnsweredRecord
from cromic_ds.inference.scoring import generate_predictions
from cromic_ds.inference.settings import JobSettings, find_task
from cromic_ds.progress import ProgressBar
from cromic_ds.run_folder import ANSWERS
from cromic_ds.tasks.base import check_task


class InferenceJob:
    """A model and a data set that fit together."""

    def __init__(self, export: LoadedExport, dataset: Dataset, settings: JobSettings):
        """Raises UserError if the data is of another task, tokenizer or answer vocabulary than the model."""
        self.export = export
        self.dataset = dataset
        self.settings = settings
        self.task = task = find_task(settings.task, "--task") if settings.task else export.task
        path = settings.data
        check_task(task, dataset, path)
        tokenizer = load_tokenizer(dataset.tokenizer_path)
        if tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(export.tokenizer):
            raise UserError(
                f"{path} was prepared with another tokenizer than the model's: prepare it with --tokenizer {export.path}"
            )
        if task.kind == "classify" and export.answers is None:
            raise UserError(f"{export.path} has no answer head (no {ANSWERS}): fine-tune it on {task.name}")
        if task.kind == "classify" and export.answers != dataset.answers:
            raise UserError(
                f"{path} was prepared with another answer vocabulary than the model's: prepare it with "
                f"--answers {export.path / ANSWERS}"
            )
        # The answers to choose from; None if texts are generated.
        self.answers = export.answers if task.kind == "classify" else None
        self.decoding = decoding_for(task, settings)
        limits = {k: export.facts[k] for k in ("max_post_tokens", "max_comment_tokens") if k in export.facts}
        self.data = DataSettings(path=path, eval_comments_per_post=None, **limits)

    def batches(self, limit: int | None = None, done: int = 0) -> Iterator[Batch]:
        """Return the batches of the first `limit` records (None: all), in order, without the first `done` (whole batches)."""
        return eval_batches(
            self.dataset,
            self.data,
            image_size=self.export.image_size,
            micro_batch=self.settings.batch,
            rank=0,
            world_size=1,
            limit=limit,
            n_answers=len(self.answers or ()),
            first_batch=-(-done // self.settings.batch),
        )

    def loss_sum(self, batch: Batch) -> float:
        """Return Σ NLL of a batch's target tokens, in nats."""
        if not batch.n_targets:
            return 0.0
        with self.export.running() as model:
            return float(model(batch.to(model.device)))

    def answer_records(self, limit: int | None = None, done: int = 0) -> Iterator[list[AnsweredRecord]]:
        """Yield the model's texts for the first `limit` records (None: all) batch by batch, with a progress bar.

        A batch's texts depend on nothing but its records and the settings. So a resumed job can leave out the first `done`
        records, a number of whole batches. Raises UserError if more than `DataSettings.max_skip_rate` cannot be read.
        """
        total = len(self.dataset) if limit is None else min(limit, len(self.dataset))
        unreadable = 0
        with ProgressBar(f"{self.task.name} {self.dataset.split}", total, "records", done) as bar:
            for batch in self.batches(limit, done):
                indices = range(done, min(done + self.settings.batch, total))
                answered = self._answer_batch(batch, indices)
                unreadable += len(batch.skipped)
                if unreadable > self.data.max_skip_rate * total:
                    name, reason = batch.skipped[-1]
                    raise UserError(
                        f"{unreadable} of {total} records of {self.settings.data} cannot be read (more than "
                        f"{self.data.max_skip_rate:.0%}), the last: {name!r} {reason}; prepare it again"
                    )
                yield answered
                done = indices.stop
                bar.update(done)

    def _answer_batch(self, batch: Batch, indices: range) -> list[AnsweredRecord]:
        torch.manual_seed(example_seed(self.settings.seed, 0, indices.start))
        with self.export.running() as model:
            texts = generate_predictions(model, self.export.tokenizer, [batch], self.decoding, self.answers)
        problems = iter(f"{name}: {reason}" for name, reason in batch.skipped)  # in the records' order
        return [
            AnsweredRecord(i, texts[i][0]) if i in texts else AnsweredRecord(i, "", next(problems)) for i in indices
        ]
