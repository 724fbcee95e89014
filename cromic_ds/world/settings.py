"""Settings of `cromic-ds sample`."""

from dataclasses import dataclass
from typing import Literal

from cromic_ds.errors import UserError
from cromic_ds.world.scenes import OFFICIAL_SCENES, POST_SCENES


@dataclass
class SampleSettings:
    """The sample world to write."""

    out: str | None = None
    """Folder to create for posts with comments."""
    official: str | None = None
    """Folder to create for the five downstream tasks in their official formats, instead of `out`."""
    posts: int = 4000
    """Number of posts, each with a scene of its own and 3 to 6 comments; with `official`, number of images of each task."""
    seed: int = 0
    """Which world to write. The same seed and number of posts give the same bytes."""
    val_fraction: float = 0.1
    """Share of the posts in the split `val`; the others are in `train`. With `official`, the split `test` is as large."""
    image_size: int = 128
    """Side of the pictures in pixels."""
    layout: Literal["store", "raw", "published"] = "store"
    """`store`: ready to train on; `raw`: lines and image files, as `cromic-ds prepare` reads them; `published`: token files.
    For posts only."""

    @property
    def val_posts(self) -> int:
        """Number of posts in the split `val`."""
        return round(self.posts * self.val_fraction)

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if not (self.out or self.official):
            raise UserError(
                "sample: no folder to write to; give one with --out, or --official for the downstream tasks"
            )
        if self.out and self.official:
            raise UserError("sample: --out is for posts and --official for the downstream tasks; give one of them")
        if not 0 <= self.val_fraction <= 1:
            raise UserError(f"sample: val_fraction {self.val_fraction} is not a share; choose between 0 and 1")
        if not 32 <= self.image_size <= 1024:
            raise UserError(f"sample: image_size {self.image_size}; choose between 32 and 1024 pixels")
        n, val = self.posts, self.val_posts
        if not self.official:
            if not 1 <= n <= POST_SCENES:
                raise UserError(
                    f"sample: {n} posts; the world has {POST_SCENES} scenes for posts, choose between 1 and that"
                )
            return
        if self.layout != "store":
            raise UserError(f"sample: layout {self.layout} is of posts; --official has the tasks' own layouts")
        if n > OFFICIAL_SCENES:
            raise UserError(f"sample: {n} images; the world has {OFFICIAL_SCENES} scenes for the downstream tasks")
        if val < 1 or n - 2 * val < 1:
            raise UserError(
                f"sample: {n} images with val_fraction {self.val_fraction} leave a split without any "
                f"(train {n - 2 * val}, val {val}, test {val}); choose more posts or another val_fraction"
            )
