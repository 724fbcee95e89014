"""What the writers of the five tasks' official files share."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cromic_ds.data.order import example_seed
from cromic_ds.world.json_list import JsonLists
from cromic_ds.world.scenes import Scene


@dataclass(slots=True)
class WorldImage:
    """A picture of the sample world about which questions are asked or captions are written."""

    index: int  # from 0
    split: str  # "train" | "val" | "test"
    scene: Scene
    jpeg: bytes


class TaskFiles(AbstractContextManager, ABC):
    """Writes the folder of one task, image by image. A context manager; the files are complete when it ends.

    `grounding.jsonl`, which the owners do not have, says for each record what the picture shows. It is the file for
    `cromic-ds prepare --extras`.
    """

    number: int  # different for each task, so that their random numbers differ

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self._files = ExitStack()
        folder.mkdir()
        self._grounding = self.text_file("grounding.jsonl")

    @abstractmethod
    def add(self, image: WorldImage) -> None:
        """Write the image with its questions or captions."""

    def text_file(self, name: str) -> TextIO:
        """Open a new file in the folder; it is closed with the context manager."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return self._files.enter_context(path.open("w", encoding="utf-8", newline="\n"))

    def json_lists(self, name: str, before: str = "", after: str = "", ascii: bool = True) -> JsonLists:
        """Open a new file of JSON lists in the folder; it is closed with the context manager."""
        return self._files.enter_context(JsonLists(self.folder / name, before, after, ascii))

    def write_image(self, name: str, image: WorldImage) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image.jpeg)

    def ground(self, id: str, extras: dict[str, Any]) -> None:
        """Write what the picture shows for a record."""
        write_line(self._grounding, {"id": id, **extras})

    def random(self, image: WorldImage) -> np.random.Generator:
        """Return the random generator for this task's texts about the image."""
        return np.random.default_rng(example_seed(self.seed, self.number, image.index))

    def __exit__(self, *exception: object) -> None:
        self._files.close()


def write_line(file: TextIO, item: dict[str, Any]) -> None:
    """Write one line of a JSON lines file."""
    file.write(json.dumps(item, ensure_ascii=False) + "\n")
