"""`TrainState`: all that a resume needs beside weights and optimizer, in the open."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from cromic_ds.data.loader import SkipCounter


@dataclass
class TrainState:
    """Because data order, dropout and learning rate are functions of (seed, step), the step is nearly all of it."""

    step: int = 0  # finished optimizer steps, skipped ones included
    posts_seen: int = 0
    targets_seen: int = 0  # target tokens
    skipped_steps: int = 0  # steps whose loss was too high, or whose loss or gradient was not finite
    mean_loss: float | None = None  # per target token, a running mean over the steps that were not skipped
    skipped_in_a_row: int = 0
    skipped_records: int = 0  # unreadable examples, over all epochs
    records: SkipCounter = field(default_factory=SkipCounter)
    loss_scale: dict | None = None  # of fp16: scale and steps since it changed
    best_score: float | None = None
    best_step: int | None = None
    worse_in_a_row: int = 0  # evaluations since the best one
    data_fingerprint: str = ""
    tokenizer_fingerprint: str = ""

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> TrainState:
        return cls(**{**values, "records": SkipCounter(**values["records"])})
