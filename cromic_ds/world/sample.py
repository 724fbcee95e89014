"""`cromic-ds sample`: write the sample world, as posts with comments or as the official files of the downstream tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from cromic_ds.prepare.store_writer import refuse_existing
from cromic_ds.progress import ProgressBar
from cromic_ds.world.official_files import TASK_FILES, official_images, write_official
from cromic_ds.world.post_files import write_published, write_raw, write_store
from cromic_ds.world.posts import sample_posts
from cromic_ds.world.settings import SampleSettings

_LAYOUTS = {"store": write_store, "raw": write_raw, "published": write_published}

_Item = TypeVar("_Item")


def sample(settings: SampleSettings) -> None:
    """Write the world. Its folder gets its name when it is complete. Raises UserError if the folder exists."""
    if settings.official:
        out = Path(settings.official)
        refuse_existing(out, "--official")
        write_official(out, _with_progress(official_images(settings), settings.posts, "images"), settings.seed)
        tasks = ", ".join(TASK_FILES)
        print(f"{out}: {settings.posts:,} images of the sample world (seed {settings.seed}) for each of {tasks}")
    elif settings.out:
        out = Path(settings.out)
        refuse_existing(out)
        _LAYOUTS[settings.layout](out, _with_progress(sample_posts(settings), settings.posts, "posts"), settings)
        print(f"{out}: {settings.posts:,} posts of the sample world (seed {settings.seed}, layout {settings.layout})")


def _with_progress(items: Iterable[_Item], total: int, unit: str) -> Iterator[_Item]:
    with ProgressBar("sample", total, unit) as bar:
        for done, item in enumerate(items, 1):
            yield item
            if done % 50 == 0 or done == total:
                bar.update(done)
