"""The sample world as the owners of the five downstream tasks would distribute it.

All tasks have the same images, each with a scene of its own. A scene is in the same split of every task, so that a model
fine-tuned on one task has seen no test scene of another. FM-IQA has no split `test` and has those scenes in `val`.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from cromic_ds.data.order import example_seed
from cromic_ds.world.caption_files import AicIccFiles, Flickr30kCnFiles, MugeFiles
from cromic_ds.world.pictures import draw_jpeg
from cromic_ds.world.question_files import FmIqaFiles, Vqa2Files
from cromic_ds.world.scenes import N_SCENES, official_scene
from cromic_ds.world.settings import SampleSettings
from cromic_ds.world.task_files import TaskFiles, WorldImage

TASK_FILES: dict[str, type[TaskFiles]] = {
    "fmiqa": FmIqaFiles,
    "vqa2": Vqa2Files,
    "aic_icc": AicIccFiles,
    "flickr30k_cn": Flickr30kCnFiles,
    "muge": MugeFiles,
}


def write_official(folder: Path, images: Iterable[WorldImage], seed: int) -> None:
    """Write FOLDER/<task>/ for each task. Every image is drawn once and given to all five tasks; only texts are kept."""
    with ExitStack() as files:
        tasks = [files.enter_context(kind(folder / name, seed)) for name, kind in TASK_FILES.items()]
        for image in images:
            for task in tasks:
                task.add(image)


def official_images(settings: SampleSettings) -> Iterator[WorldImage]:
    """Yield the images of `train`, then those of `val`, then those of `test`."""
    n, val = settings.posts, settings.val_posts
    for i in range(n):
        split = "train" if i < n - 2 * val else "val" if i < n - val else "test"
        scene = official_scene(i, settings.seed)
        # The generator of the post at the scene's place in the world's order; that post is never written.
        rng = np.random.default_rng(example_seed(settings.seed, 0, N_SCENES - 1 - i))
        yield WorldImage(i, split, scene, draw_jpeg(scene, rng, settings.image_size))
