"""What the writers of the five tasks' official files share."""

import json
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cromic_ds.data.order import example_seed
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
    ascii = True  # whether the JSON files escape all other characters as `\uXXXX`

    def __init__(self, folder: Path, seed: int):
        folder.mkdir()
        self.folder, self.seed = folder, seed
        self.json: dict[str, Any] = {}  # content of the JSON files by name, written at the end; texts only, no images
        self._open: dict[str, TextIO] = {}
        self._files = ExitStack()

    @abstractmethod
    def add(self, image: WorldImage) -> None:
        """Write the image with its questions or captions."""

    def write(self, name: str, line: str) -> None:
        """Append a line to a text file of the folder."""
        if name not in self._open:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open[name] = self._files.enter_context(path.open("w", encoding="utf-8", newline="\n"))
        self._open[name].write(f"{line}\n")

    def write_item(self, name: str, item: dict[str, Any]) -> None:
        """Append one line to a JSON lines file of the folder."""
        self.write(name, json.dumps(item, ensure_ascii=False))

    def write_image(self, name: str, image: WorldImage) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image.jpeg)

    def ground(self, id: str, extras: dict[str, Any]) -> None:
        """Write what the picture shows for a record."""
        self.write_item("grounding.jsonl", {"id": id, **extras})

    def random(self, image: WorldImage) -> np.random.Generator:
        """Return the random generator for this task's texts about the image."""
        return np.random.default_rng(example_seed(self.seed, self.number, image.index))

    def __exit__(self, *exception: object) -> None:
        self._files.close()
        if exception[0] is None:
            for name, content in self.json.items():
                (self.folder / name).write_text(json.dumps(content, ensure_ascii=self.ascii), encoding="utf-8")
