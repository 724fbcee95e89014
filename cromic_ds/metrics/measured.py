"""What scoring a corpus takes and gives, whatever the task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from cromic_ds.metrics.bootstrap import intervals
from cromic_ds.metrics.items import Items


class Record(Protocol):
    """What scoring reads of a record: its references, and extras with its image and what belongs to its task."""

    id: str
    comments: list[str]
    extras: dict


def image_of(record: Record) -> str:
    """The image that a record shares with others; the record's own id where none is named."""
    return str(record.extras.get("image_id", record.id))


@dataclass
class Measured:
    """Scores of one prediction per record."""

    scores: dict[str, float]
    counts: dict[str, int]  # items: records scored; images: those the intervals resample; and whatever else was counted
    tokenization: str
    notes: list[str]  # sentences that a reader of the numbers must know
    items: dict  # statistics of each record as JSON takes them (metrics/items.py)
    intervals: dict[str, list[float]] = field(default_factory=dict)  # score → 95% [low, high], bootstrap over images

    def flat(self) -> dict[str, float | int | str | list[str]]:
        """Scores, `n_items`, `tokenization` and `notes` in one dict, as the training log takes them."""
        return {
            **self.scores,
            "n_items": self.counts["items"],
            "tokenization": self.tokenization,
            "notes": self.notes,
        }


def measured(
    scores: dict[str, float], items: Items, scored: int, tokenization: str, notes: list[str], resamples: int, seed: int
) -> Measured:
    """Counts and intervals added to the scores. scored: how many of the items were scored against a reference."""
    images = len(set(items.images))
    if resamples and images == 1:
        notes = [*notes, "there are no intervals over a single image"]
    drawn = intervals(items, resamples, seed) if resamples and images > 1 else {}
    return Measured(scores, {"items": scored, "images": images}, tokenization, notes, items.to_json(), drawn)
