"""Result files: what `cromic-ds evaluate` and `cromic-ds score` write and `cromic-ds compare` reads.

A result is one JSON object: `task`; `scores`; `intervals` (score → 95% [low, high], bootstrap over images); `counts` (scored
`items`, `images`, …); `tokenization`; `notes`; `data` (`path`, `split`, `fingerprint`); `decoding` and `model`, null if a
prediction file was scored; `predictions`, the path of that file or null; `items`, the statistics of each record.
"""

import json
from pathlib import Path
from typing import Any

from cromic_ds.data.dataset import Dataset
from cromic_ds.errors import UserError
from cromic_ds.files import read_json, replacing
from cromic_ds.metrics.items import Items
from cromic_ds.metrics.measured import Measured
from cromic_ds.tasks.base import Task

_TYPES = {
    "task": str,
    "scores": dict,
    "intervals": dict,
    "counts": dict,
    "tokenization": str,
    "data": dict,
    "items": dict,
}


def result_json(
    task: Task,
    measured: Measured,
    *,
    data: dict[str, Any],
    decoding: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    predictions: str | None = None,
) -> dict[str, Any]:
    """Return the content of a result file. data: see `describe_data`. Add further scores and counts to `measured` first."""
    return {
        "task": task.name,
        "scores": measured.scores,
        "intervals": measured.intervals,
        "counts": measured.counts,
        "tokenization": measured.tokenization,
        "notes": measured.notes,
        "data": data,
        "decoding": decoding,
        "model": model,
        "predictions": predictions,
        "items": measured.items,
    }


def describe_data(path: str, dataset: Dataset) -> dict[str, Any]:
    """Return what a result says about its data."""
    return {"path": path, "split": dataset.split, "fingerprint": dataset.fingerprint}


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result file, with the long list of items on a line of its own. Raises UserError if it cannot be written."""
    entries = (
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, indent=None if key == 'items' else 1)}"
        for key, value in result.items()
    )
    try:
        with replacing(path) as file:
            file.write("{\n" + ",\n".join(entries) + "\n}\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def read_result(path: str | Path) -> dict[str, Any]:
    """Return the checked content of a result file, its `items` as `Items`. Raises UserError if it is not a result file."""
    try:
        result = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); give a result of `cromic-ds evaluate` or `score`") from None
    wrong = [k for k, kind in _TYPES.items() if not isinstance(result, dict) or not isinstance(result.get(k), kind)]
    if wrong:
        raise UserError(
            f"{path}: no result file, {wrong[0]!r} is missing; give a result of `cromic-ds evaluate` or `score`"
        )
    if not all(isinstance(value, int | float) for value in result["scores"].values()):
        raise UserError(f"{path}: its scores are not all numbers; make the result again")
    try:
        return result | {"items": Items.from_json(result["items"])}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: its items are damaged ({error!r}); make the result again") from None


def result_table(result: dict[str, Any]) -> str:
    """Return scores with intervals, counts and notes as text for people."""
    width = max(map(len, result["scores"]), default=0)
    lines = [f"{result['task']}, {result['data']['split']} of {result['data']['path']}"]
    for name, value in result["scores"].items():
        low_high = result["intervals"].get(name)
        lines.append(f"{name:{width}}  {value:.4f}" + (f"  [{low_high[0]:.4f}, {low_high[1]:.4f}]" if low_high else ""))
    counts = ", ".join(f"{count:,} {what}" for what, count in result["counts"].items())
    lines.append(f"{counts}; tokenization {result['tokenization']}")
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])
