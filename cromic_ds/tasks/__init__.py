"""The tasks, by name: each binds a kind of data to its metrics."""

from __future__ import annotations

from typing import Protocol

from cromic_ds.data.dataset import Texts
from cromic_ds.tasks.comments import Comments


class Task(Protocol):
    """What a run is judged by."""

    name: str
    best_metric: str  # the evaluation metric that chooses the best checkpoint
    higher_is_better: bool

    def score(self, predictions: list[str], texts: list[Texts], tokenisation: str, meteor: bool) -> dict:
        """Scores of one prediction per record, over the whole corpus."""
        ...


TASKS: dict[str, Task] = {"comments": Comments()}
