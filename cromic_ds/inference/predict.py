"""Predict a split and write the file that the task's evaluation server takes. An interrupted command can be resumed.

Texts are kept batch by batch in OUT.partial.jsonl (see `partial_predictions`). At the end they become OUT, which is read back
and checked before it gets its name.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cromic_ds.data.dataset import Dataset, Texts, UnreadableRecord
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.errors import UserError
from cromic_ds.files import replacing
from cromic_ds.inference.output import output_file
from cromic_ds.inference.partial_predictions import PartialPredictions, open_partial
from cromic_ds.inference.settings import PredictSettings
from cromic_ds.tasks.predictions import check_ids

if TYPE_CHECKING:
    from cromic_ds.inference.job import InferenceJob


def predict(settings: PredictSettings) -> None:
    """Run `cromic-ds predict`. Raise UserError if model and data do not fit together, or not with the partial file."""
    from cromic_ds.inference.job import InferenceJob
    from cromic_ds.inference.loaded import load

    dataset = open_dataset(settings.data, settings.split)
    out = output_file(settings.out)
    ids = record_ids(dataset, settings.data)
    job = InferenceJob(load(settings.export, settings.precision), dataset, settings)
    partial_file = out.with_name(f"{out.name}.partial.jsonl")
    origin = {  # all that the texts follow from
        "task": job.task.name,
        "data": {"split": settings.split, "fingerprint": dataset.fingerprint},
        "model": job.export.identity(),
        "decoding": None if job.answers else asdict(job.decoding),
        "batch": settings.batch,
        "seed": settings.seed,
    }
    with open_partial(partial_file, origin, settings.batch, len(ids)) as partial:
        if partial.done:
            print(f"{partial.path}: resuming after {partial.done:,} of {len(ids):,} records")
        for answered in job.answer_records(done=partial.done):
            partial.append(answered)
        unreadable = write_predictions(job, partial, ids, out)
        partial.path.unlink()
    print(f"{out}: {len(ids):,} predictions for {job.task.name}, split {settings.split}")
    if unreadable:
        print(f"{len(unreadable)} records could not be read; they have an empty text: {unreadable[0]}", file=sys.stderr)


def record_ids(dataset: Dataset, path: str) -> list[str]:
    """Return the id of every record.

    Raises UserError if an id cannot be read, or two records have the same: here, before hours of decoding.
    """
    try:
        ids = [dataset.tokens(index).id for index in range(len(dataset))]
    except UnreadableRecord as error:
        raise UserError(f"{path}: {error}; a file of predictions names every record, so prepare it again") from None
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise UserError(f"{path}: id {twice!r} occurs more than once in {dataset.split!r}; prepare it again")
    return ids


def write_predictions(job: InferenceJob, partial: PartialPredictions, ids: list[str], out: Path) -> list[str]:
    """Write the server's file, and return why records could not be read, one text for each.

    Raises UserError if the file does not name each of the `ids` exactly once; it is then not written.
    """
    unreadable = []

    def pairs() -> Iterator[tuple[Texts, str]]:
        for record in partial.read():
            if record.problem:
                unreadable.append(record.problem)
            yield job.dataset.texts(record.index), record.text

    with replacing(out) as file:
        job.task.form.write(file, pairs())
        file.flush()
        check_ids((id for id, _ in job.task.form.read(Path(file.name))), ids, str(out))
    return unreadable
