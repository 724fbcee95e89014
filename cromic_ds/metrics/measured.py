"""Input and result of scoring a corpus, the same for all tasks."""

from dataclasses import dataclass, field
from typing import Any

from cromic_ds.data.dataset import Texts
from cromic_ds.metrics.bootstrap import intervals
from cromic_ds.metrics.items import Items


def image_of(record: Texts) -> str:
    """Return the id of the record's image, which other records may share; the record's own id if it names no image."""
    return str(record.extras.get("image_id", record.id))


@dataclass
class Measured:
    """Scores of one prediction per record."""

    scores: dict[str, float]
    counts: dict[str, int]  # `items`: scored records; `images`: images that are resampled; and others
    tokenization: str
    notes: list[str]  # what a reader of the numbers must know
    items: dict[str, Any]  # `Items.to_json()`
    intervals: dict[str, list[float]] = field(default_factory=dict)  # score → 95% [low, high], bootstrap over images

    def flat(self) -> dict[str, Any]:
        """Return scores, `n_items`, `tokenization` and `notes` in one dict, for the training log."""
        return {**self.scores, "n_items": self.counts["items"], "tokenization": self.tokenization, "notes": self.notes}


def measured(
    scores: dict[str, float], items: Items, scored: int, tokenization: str, notes: list[str], resamples: int, seed: int
) -> Measured:
    """Add counts and intervals to the scores. scored: how many of the items were scored against a reference."""
    images = len(set(items.images))
    if resamples and images == 1:
        notes = [*notes, "there are no intervals over a single image"]
    drawn = intervals(items, resamples, seed) if resamples and images > 1 else {}
    return Measured(scores, {"items": scored, "images": images}, tokenization, notes, items.to_json(), drawn)
