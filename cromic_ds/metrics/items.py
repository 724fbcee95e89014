"""What each record contributes to the scores of its corpus. Kept, so that scores can be recomputed for resamples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

BLEU_ORDERS = 4  # BLEU-1 to BLEU-4
BLEU_COLUMNS = 2 + BLEU_ORDERS  # tokens, tokens of the reference of closest length, clipped matches of 1- to 4-grams


@dataclass
class Group:
    """The parts of a mean: item i contributes to the score `names[codes[i]]`, or to none if the code is -1."""

    of: str  # name of the mean
    names: list[str]
    codes: np.ndarray  # (items,) int


@dataclass
class Items:
    """Statistics of the scored records, in the order of the data."""

    ids: list[str]
    images: list[str]  # image of each record; the records of one image are resampled together
    means: dict[str, np.ndarray] = field(default_factory=dict)  # score → (items,); nan: the item does not contribute
    groups: list[Group] = field(default_factory=list)
    bleu: np.ndarray | None = None  # (items, BLEU_COLUMNS), a row of nan for an item without a reference

    def __post_init__(self) -> None:
        columns = [*self.means.values(), *(g.codes for g in self.groups)]
        if len(self.images) != len(self.ids) or any(column.shape != (len(self.ids),) for column in columns):
            raise ValueError("columns of different length")
        if self.bleu is not None and self.bleu.shape != (len(self.ids), BLEU_COLUMNS):
            raise ValueError(f"bleu has the shape {self.bleu.shape}")
        for g in self.groups:
            if g.of not in self.means or not np.isin(g.codes, range(-1, len(g.names))).all():
                raise ValueError(f"the parts of {g.of!r} do not fit")

    def parts(self, mean: str) -> list[Group]:
        """Return the groups of a mean's parts."""
        return [g for g in self.groups if g.of == mean]

    def names(self) -> list[str]:
        """Return the names of all means, each followed by those of its parts."""
        return [name for mean in self.means for name in (mean, *(n for g in self.parts(mean) for n in g.names))]

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, with null for nan."""
        made: dict[str, Any] = {"ids": self.ids, "images": self.images}
        made["means"] = {name: _listed(values) for name, values in self.means.items()}
        made["groups"] = [{"of": g.of, "names": g.names, "codes": g.codes.tolist()} for g in self.groups]
        if self.bleu is not None:
            made["bleu"] = [None if np.isnan(row[0]) else row.astype(int).tolist() for row in self.bleu]
        return made

    @classmethod
    def from_json(cls, made: dict[str, Any]) -> Items:
        """Return the items that `to_json` was called on. Raises ValueError, TypeError or KeyError for other values."""
        bleu = made.get("bleu")
        if bleu is not None:
            nothing = [np.nan] * BLEU_COLUMNS
            bleu = np.array([nothing if row is None else row for row in bleu], float).reshape(-1, BLEU_COLUMNS)
        return cls(
            ids=[str(i) for i in made["ids"]],
            images=[str(i) for i in made["images"]],
            means={name: np.array(values, float) for name, values in made["means"].items()},  # null becomes nan
            groups=[Group(g["of"], list(g["names"]), np.array(g["codes"], int)) for g in made["groups"]],
            bleu=bleu,
        )


def group(prefix: str, labels: list[str | None], of: str = "") -> Group:
    """Return the parts of the mean `of` (default: `prefix`) by label, named `<prefix>_<label>`, in alphabetical order."""
    known = sorted({label for label in labels if label})
    code: dict[str | None, int] = {label: k for k, label in enumerate(known)}
    codes = np.array([code.get(label, -1) for label in labels], int)
    return Group(of or prefix, [f"{prefix}_{label}" for label in known], codes)


def _listed(values: np.ndarray) -> list[float | int | None]:
    return [None if np.isnan(v) else int(v) if v == int(v) else float(v) for v in values]
