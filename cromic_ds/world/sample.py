"""`cromic-ds sample`: write the sample world, as posts with comments or as the official files of the downstream tasks."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cromic_ds.prepare.store_writer import partial_folder, refuse_existing
from cromic_ds.progress import ProgressBar
from cromic_ds.world.official_files import TASK_FILES, official_images, write_official
from cromic_ds.world.posts import sample_posts, write_published, write_raw, write_store
from cromic_ds.world.settings import SampleSettings

_Item = TypeVar("_Item")


def sample(settings: SampleSettings) -> None:
    """Write the world. Its folder gets its name when it is complete. Raises UserError if the folder exists."""
    if settings.official:
        out = Path(settings.official)
        refuse_existing(out, "--official")
        images = _with_progress(official_images(settings), settings.posts, "images")
        with _new_folder(out) as folder:
            write_official(folder, images, settings.seed)
        tasks = ", ".join(TASK_FILES)
        print(f"{out}: {settings.posts:,} images of the sample world (seed {settings.seed}) for each of {tasks}")
    elif settings.out:
        out = Path(settings.out)
        refuse_existing(out)
        posts = _with_progress(sample_posts(settings), settings.posts, "posts")
        if settings.layout == "store":
            write_store(out, posts, settings)
        else:
            write = write_raw if settings.layout == "raw" else write_published
            with _new_folder(out) as folder:
                write(folder, posts, settings)
        print(f"{out}: {settings.posts:,} posts of the sample world (seed {settings.seed}, layout {settings.layout})")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the name `out` when the block ends; if it fails, nothing is left."""
    work = partial_folder(out)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    work.rename(out)


def _with_progress(items: Iterable[_Item], total: int, unit: str) -> Iterator[_Item]:
    with ProgressBar("sample", total, unit) as bar:
        for done, item in enumerate(items, 1):
            yield item
            if done % 50 == 0 or done == total:
                bar.update(done)
