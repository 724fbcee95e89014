"""Score an exported model on a split of a data set, by the task's official metric."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import chain

from cromic_ds.data.dataset import Dataset, Texts, UnreadableRecord
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.errors import UserError
from cromic_ds.inference.output import output_file
from cromic_ds.inference.settings import EvaluateSettings
from cromic_ds.tasks.results import describe_data, result_json, result_table, write_result


def evaluate(settings: EvaluateSettings) -> None:
    """Run `cromic-ds evaluate`: write the scores, with all that makes them repeatable, to the result file, and print them.

    If texts are generated, the scores include `loss` and `perplexity` by teacher forcing. Raises UserError if the split has no
    references to score against.
    """
    from cromic_ds.inference.job import InferenceJob
    from cromic_ds.inference.loaded import load
    from cromic_ds.inference.scoring import teacher_forced

    dataset = open_dataset(settings.data, settings.split)
    out = output_file(settings.out) if settings.out else None
    job = InferenceJob(load(settings.export, settings.precision), dataset, settings)
    task = job.task
    tokenization = task.choose_tokenization(settings.tokenization)
    if not any(task.has_references(texts) for _, texts in readable_texts(dataset, settings.limit)):
        raise UserError(
            f"split {settings.split!r} of {settings.data} has no references to score against: "
            "`cromic-ds predict` writes the file that is scored elsewhere"
        )
    answered = list(chain.from_iterable(job.answer_records(settings.limit)))
    texts = dict(readable_texts(dataset, settings.limit))
    scored = [record for record in answered if record.index in texts]
    predictions, references = [record.text for record in scored], [texts[record.index] for record in scored]
    measured = task.measure(
        predictions, references, tokenization, settings.meteor, resamples=settings.resamples, seed=settings.seed
    )
    if bad := [record.problem for record in answered if record.problem]:
        measured.notes.append(f"unreadable, so without a prediction: {len(bad)} records, such as {bad[0]}")
    if task.kind != "classify":
        forced = teacher_forced(job.loss_sum, job.batches(settings.limit))
        measured.scores = {name: forced[name] for name in ("loss", "perplexity")} | measured.scores
        measured.counts["targets"] = int(forced["targets"])
        measured.notes.append("loss and perplexity are by teacher forcing over all references; the rest is decoded")
    result = result_json(
        task,
        measured,
        data=describe_data(settings.data, dataset),
        decoding=None if job.answers else asdict(job.decoding) | {"seed": settings.seed},
        model={"export": settings.export, **job.export.identity()},
    )
    out = out or job.export.path / f"evaluation-{task.name}-{settings.split}.json"
    write_result(out, result)
    print(result_table(result))
    print(f"written to {out}")


def readable_texts(dataset: Dataset, limit: int | None) -> Iterator[tuple[int, Texts]]:
    """Yield index and texts of those of the first `limit` records (None: all) that are not damaged."""
    for index in range(len(dataset) if limit is None else min(limit, len(dataset))):
        with suppress(UnreadableRecord):
            yield index, dataset.texts(index)
