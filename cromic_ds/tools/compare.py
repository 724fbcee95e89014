"""Compare two results: their differences, 95% intervals, and a paired bootstrap test over the images."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cromic_ds.errors import UserError
from cromic_ds.metrics.bootstrap import interval, p_value, resample
from cromic_ds.tasks.results import read_result


@dataclass
class CompareSettings:
    """Two result files of the same task, tokenization and data."""

    a: str = ""
    """Result file of `cromic-ds evaluate` or `cromic-ds score`."""
    b: str = ""
    """Another result file of the same task, tokenization and data."""
    resamples: int = 10_000
    """Number of bootstrap resamples of the images, for the intervals and p-values."""
    seed: int = 0
    """Seed of the resamples."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if not self.a or not self.b:
            raise UserError("give two result files of `cromic-ds evaluate` or `cromic-ds score`")
        if self.resamples < 1:
            raise UserError(f"--resamples {self.resamples} must be at least 1")


@dataclass
class Difference:
    """One score in both results."""

    name: str
    a: float
    b: float
    interval: list[float] | None  # 95%, of b - a; None for scores that cannot be resampled, such as diversity
    p: float | None


def compare(settings: CompareSettings) -> None:
    """`cromic-ds compare`: print the comparison. Raises UserError if the results cannot be compared."""
    a, b = read_result(settings.a), read_result(settings.b)
    check_comparable(a, b, f"{settings.a} and {settings.b}")
    print(f"A: {settings.a}\nB: {settings.b}")
    print(f"{a['task']}, {a['data']['split']} of {a['data']['path']}, tokenization {a['tokenization']}")
    print(comparison_table(differences(a, b, settings.resamples, settings.seed)))
    images = len(set(a["items"].images))
    print(f"p: two-sided, paired bootstrap over {images:,} images, {settings.resamples:,} resamples")


def check_comparable(a: dict[str, Any], b: dict[str, Any], names: str) -> None:
    """Raise UserError, which says what differs, unless task, tokenization, split, data and records are the same."""
    of_a, of_b = (
        {
            "task": result["task"],
            "tokenization": result["tokenization"],
            "split": result["data"].get("split"),
            "data fingerprint": result["data"].get("fingerprint"),
        }
        for result in (a, b)
    )
    differ = [f"{what} ({of_a[what]} and {of_b[what]})" for what in of_a if of_a[what] != of_b[what]]
    first, second = a["items"], b["items"]
    if not differ and (first.ids, first.images) != (second.ids, second.images):
        only_a, only_b = set(first.ids) - set(second.ids), set(second.ids) - set(first.ids)
        counts = f"{len(first.ids):,} and {len(second.ids):,}, {len(only_a):,} only in A, {len(only_b):,} only in B"
        differ = [f"records ({counts})" if only_a or only_b else "the order, number or images of the records"]
    if differ:
        raise UserError(
            f"{names} cannot be compared, because they differ in {', '.join(differ)}: "
            "score both on the same split of one store, with the same tokenization"
        )


def differences(a: dict[str, Any], b: dict[str, Any], resamples: int, seed: int) -> list[Difference]:
    """Return the differences of the scores that both results have, in their order."""
    drawn: dict[str, np.ndarray] = {}
    if len(set(a["items"].images)) > 1:  # resamples of a single image are all equal
        first, second = (resample(result["items"], resamples, seed) for result in (a, b))
        drawn = {name: second[name] - first[name] for name in first if name in second}
    found = []
    for name, score in a["scores"].items():
        if name in b["scores"]:
            bounds, p = (interval(drawn[name]), p_value(drawn[name])) if name in drawn else (None, None)
            found.append(Difference(name, score, b["scores"][name], bounds, p))
    return found


def comparison_table(rows: list[Difference]) -> str:
    width = max((len(row.name) for row in rows), default=0)
    lines = [f"{'':{width}}  {'A':>8}  {'B':>8}  {'B - A':>8}  {'95% interval':>18}  {'p':>6}"]
    for row in rows:
        bounds = f"[{row.interval[0]:+.4f}, {row.interval[1]:+.4f}]" if row.interval else "-"
        p = "-" if row.p is None else f"{row.p:.4f}"
        lines.append(f"{row.name:{width}}  {row.a:8.4f}  {row.b:8.4f}  {row.b - row.a:+8.4f}  {bounds:>18}  {p:>6}")
    return "\n".join(lines)
