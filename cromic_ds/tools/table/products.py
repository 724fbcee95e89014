"""What a job must have left behind to count as done, and what the table wants to know of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cromic_ds.data.store import read_meta
from cromic_ds.errors import UserError
from cromic_ds.tasks.results import read_result
from cromic_ds.tools.table.plan import Job


def look_at(job: Job, folder: Path) -> dict[str, Any]:
    """A summary of what the job made; for an evaluation, all that the report shows.

    Raises:
        UserError: it is not there, or not what it should be.
    """
    product = folder / job.makes
    if not product.exists():
        raise UserError(f"{product} is missing")
    if job.trains:
        if not list(product.glob("*.safetensors")):
            raise UserError(f"{product}: an export without weights")
        return {}
    if job.stage == "evaluate":
        return _evaluated(job, product)
    if (job.stage, job.makes) == ("sample", "official"):  # files of five kinds; the folder appears when all are written
        return {}
    return {"records": {split: of["records"] for split, of in read_meta(product)["splits"].items()}}


def _evaluated(job: Job, product: Path) -> dict[str, Any]:
    result = read_result(product)
    if result["task"] != job.task:
        raise UserError(f"{product}: a result of {result['task']}, not of {job.task}")
    kept = ("scores", "counts", "tokenization", "notes", "decoding")
    return {name: result.get(name) for name in kept} | {"split": result["data"].get("split")}
