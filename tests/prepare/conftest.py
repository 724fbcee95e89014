from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cromic_ds.data.dataset import Dataset
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.data.tokenizer import SPECIAL
from cromic_ds.prepare.command import prepare
from cromic_ds.prepare.settings import PrepareSettings


class OfficialFolder:
    """A folder of official files, and the store that `prepare` makes of it."""

    def __init__(self, folder: Path):
        self.root, self.out = folder / "official", folder / "store"
        self.root.mkdir()
        self.tokenizer = folder / "vocab.txt"
        letters = "你好吗猫狗红色是什么一个在图里，0123456789abcdefghijklmnopqrstuvwxyz?"
        vocabulary = [
            *SPECIAL.values(),
            *letters,
            *(f"##{letter}" for letter in "0123456789abcdefghijklmnopqrstuvwxyz"),
        ]
        self.tokenizer.write_text("\n".join(vocabulary), encoding="utf-8")

    def write(self, name: str, content: str | bytes | list | dict) -> Path:
        """Write a file: bytes and text as they are, anything else as JSON."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def image(self, name: str, number: int) -> None:
        self.write(name, self.jpeg(number))

    def coco(self, folder: str, *ids: int) -> None:
        for id in ids:
            self.image(f"{folder}/COCO_{folder}_{id:012d}.jpg", id)

    @staticmethod
    def jpeg(number: int) -> bytes:
        """Return an image that already has the stored size, so that it is kept byte for byte."""
        file = io.BytesIO()
        color = tuple(int(c) for c in np.random.default_rng(number).integers(0, 255, 3))
        Image.new("RGB", (80, 64), color).save(file, "JPEG")
        return file.getvalue()

    def prepare(self, task: str, **settings) -> Path:
        """Prepare a task and return the store."""
        defaults = {"tokenizer": str(self.tokenizer), "out": str(self.out), "short_side": 64, "workers": 1}
        prepare(PrepareSettings(task=task, root=str(self.root), **defaults | settings))
        return Path((defaults | settings)["out"])

    def rejects(self, store: Path | None = None) -> list[tuple[str, int, str, str]]:
        """Return (file relative to the folder, line, id, reason) of each rejected line."""
        lines = ((store or self.out) / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
        rejects = map(json.loads, lines)
        return [(r["file"].removeprefix(f"{self.root}/"), r["line"], r["id"], r["reason"]) for r in rejects]


@pytest.fixture
def official(tmp_path: Path) -> OfficialFolder:
    return OfficialFolder(tmp_path)


@pytest.fixture
def records() -> Callable[[Path, str], list[tuple]]:
    """Return a function records(store, split), which returns (id, post, comments, extras) of each record."""

    def read(store: Path, split: str = "train") -> list[tuple]:
        data: Dataset = open_dataset(store, split)
        texts = [data.texts(i) for i in range(len(data))]
        return [(t.id, t.post, t.comments, t.extras) for t in texts]

    return read
