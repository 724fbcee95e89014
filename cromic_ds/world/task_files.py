"""What the official files of the five tasks have in common."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from cromic_ds.data.order import example_seed
from cromic_ds.world.json_list import JsonLists
from cromic_ds.world.scenes import Scene


@dataclass(slots=True)
class WorldImage:
    """A picture of the sample world to be asked about, or described."""

    index: int  # from 0
    split: str  # "train" | "val" | "test"
    scene: Scene
    jpeg: bytes


class TaskFiles(AbstractContextManager, ABC):
    """One task's folder, which grows image by image. Used as a context manager; no file is complete before its end.

    `grounding.jsonl`, which no owner has, says what the picture shows for each record: the file for
    `cromic-ds prepare --extras`.
    """

    number: int  # tells the tasks' random numbers apart

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self._files = ExitStack()
        folder.mkdir()
        self._grounding = self.text_file("grounding.jsonl")

    @abstractmethod
    def add(self, image: WorldImage) -> None:
        """Write the image and all that is said of it."""

    def text_file(self, name: str) -> TextIO:
        """A new file in the folder, open until the end."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return self._files.enter_context(path.open("w", encoding="utf-8", newline="\n"))

    def json_lists(self, name: str, before: str = "", after: str = "", ascii: bool = True) -> JsonLists:
        return self._files.enter_context(JsonLists(self.folder / name, before, after, ascii))

    def write_image(self, name: str, image: WorldImage) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image.jpeg)

    def ground(self, id: str, extras: dict) -> None:
        write_line(self._grounding, {"id": id, **extras})

    def random(self, image: WorldImage) -> np.random.Generator:
        """The generator for what this task says of the image."""
        return np.random.default_rng(example_seed(self.seed, self.number, image.index))

    def __exit__(self, *exception) -> None:
        self._files.close()


def write_line(file: TextIO, item: dict) -> None:
    """One line of a JSON lines file."""
    file.write(json.dumps(item, ensure_ascii=False) + "\n")
