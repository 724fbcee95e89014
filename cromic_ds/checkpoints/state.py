"""`TrainState`: everything that a resume needs beside weights and optimizer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from cromic_ds.data.loader import SkipCounter


@dataclass
class TrainState:
    """Mostly the step: data order, dropout and learning rate are functions of (seed, step)."""

    step: int = 0  # finished optimizer steps, skipped ones included
    posts_seen: int = 0
    targets_seen: int = 0  # target tokens
    skipped_steps: int = 0  # steps whose loss was too high, or whose loss or gradient was not finite
    mean_loss: float | None = None  # per target token: running mean over the steps that were not skipped
    skipped_in_a_row: int = 0
    skipped_records: int = 0  # unreadable examples, over all epochs
    records: SkipCounter = field(default_factory=SkipCounter)
    loss_scale: dict[str, float] | None = None  # under fp16: scale and steps since it changed
    best_score: float | None = None
    best_step: int | None = None
    worse_in_a_row: int = 0  # evaluations since the best one
    data_fingerprint: str = ""
    tokenizer_fingerprint: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        return cls(**{**values, "records": SkipCounter(**values["records"])})
