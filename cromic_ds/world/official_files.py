"""`cromic-ds sample --official`: the sample world as the five downstream tasks' owners would distribute it.

Every task has the same images, each with a scene of its own. A scene is in one split whatever the task, so that a model
fine-tuned on one task has seen no test scene of another; FM-IQA, which has no split `test`, has those scenes in `val`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cromic_ds.data.order import example_seed
from cromic_ds.errors import UserError
from cromic_ds.progress import ProgressBar
from cromic_ds.world.caption_files import AicIccFiles, Flickr30kCnFiles, MugeFiles
from cromic_ds.world.draw import draw_jpeg
from cromic_ds.world.folder import new_folder
from cromic_ds.world.question_files import FmIqaFiles, Vqa2Files
from cromic_ds.world.scenes import N_SCENES, OFFICIAL_SCENES, official_scene
from cromic_ds.world.task_files import TaskFiles, WorldImage

if TYPE_CHECKING:
    from cromic_ds.world.settings import SampleSettings

TASKS: dict[str, type[TaskFiles]] = {
    "fmiqa": FmIqaFiles,
    "vqa2": Vqa2Files,
    "aic_icc": AicIccFiles,
    "flickr30k_cn": Flickr30kCnFiles,
    "muge": MugeFiles,
}


def check_official(settings: SampleSettings) -> None:
    """Raise UserError for settings that official files cannot have."""
    n, val = settings.posts, _val_images(settings)
    if settings.layout != "store":
        raise UserError(f"sample: layout {settings.layout} is of posts; --official has the tasks' own layouts")
    if n > OFFICIAL_SCENES:
        raise UserError(f"sample: {n} images; the world has {OFFICIAL_SCENES} scenes for the downstream tasks")
    if val < 1 or n - 2 * val < 1:
        raise UserError(
            f"sample: {n} images with val_fraction {settings.val_fraction} leave a split without any "
            f"(train {n - 2 * val}, val {val}, test {val}); choose more posts or another val_fraction"
        )
    if Path(settings.official).exists():
        raise UserError(f"{settings.official}: already exists; remove it or choose another --official")


def write_official(settings: SampleSettings) -> None:
    """FOLDER/<task>/ for each task. Every image is drawn once and given to all five; nothing is kept of it."""
    out, total = Path(settings.official), settings.posts
    with new_folder(out) as work, ProgressBar("sample", total, "images") as bar, ExitStack() as files:
        tasks = [files.enter_context(kind(work / name, settings.seed)) for name, kind in TASKS.items()]
        for done, image in enumerate(images(settings), 1):
            for task in tasks:
                task.add(image)
            if done % 50 == 0 or done == total:
                bar.update(done)
    print(f"{out}: {total:,} images of the sample world (seed {settings.seed}) for each of {', '.join(TASKS)}")


def images(settings: SampleSettings) -> Iterator[WorldImage]:
    """The images of `train`, then those of `val`, then those of `test`."""
    n, val = settings.posts, _val_images(settings)
    for i in range(n):
        split = "train" if i < n - 2 * val else "val" if i < n - val else "test"
        scene = official_scene(i, settings.seed)
        # As for the post at the scene's place in the world's order, which is never written.
        rng = np.random.default_rng(example_seed(settings.seed, 0, N_SCENES - 1 - i))
        yield WorldImage(i, split, scene, draw_jpeg(scene, rng, settings.image_size))


def _val_images(settings: SampleSettings) -> int:
    return round(settings.posts * settings.val_fraction)
