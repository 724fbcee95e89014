"""Settings of `cromic-ds sample`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class SampleSettings:
    """The sample world to write."""

    out: str = ""
    """Folder to create for posts with comments."""
    official: str = ""
    """Folder to create for the five downstream tasks in their official formats, instead of `out`."""
    posts: int = 4000
    """Number of posts, each with a scene of its own and 3 to 6 comments; with `official`, of images per task."""
    seed: int = 0
    """World to draw from; the same seed and number of posts give the same bytes."""
    val_fraction: float = 0.1
    """Share of the posts in the split `val`; the others are in `train`. With `official`, a split `test` gets as much."""
    image_size: int = 128
    """Side of the pictures in pixels."""
    layout: Literal["store", "raw", "published"] = "store"
    """`store` to train on; `raw` lines and image files, as `cromic-ds prepare` reads them; `published` token files.
    Of posts only."""
