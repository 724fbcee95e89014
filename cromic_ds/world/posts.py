"""The posts of the sample world with their pictures and comments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cromic_ds.data.order import example_seed
from cromic_ds.world import language
from cromic_ds.world.pictures import draw_jpeg
from cromic_ds.world.scenes import nth_scene, question_extras, scene_questions
from cromic_ds.world.settings import SampleSettings


@dataclass(slots=True)
class SamplePost:
    """One post of the world with its picture."""

    id: str
    split: str
    post: str
    comments: list[str]
    extras: dict[str, Any]  # see `question_extras`
    jpeg: bytes


def sample_posts(settings: SampleSettings) -> Iterator[SamplePost]:
    """Yield all posts, those of `val` last. No two posts share a scene, so no scene is in both splits."""
    for i in range(settings.posts):
        scene = nth_scene(i, settings.seed)
        rng = np.random.default_rng(example_seed(settings.seed, 0, i))
        questions, probabilities = zip(*scene_questions(scene))
        question = questions[rng.choice(len(questions), p=probabilities)]
        post, comments = language.write_post(question, rng), language.write_comments(question, rng)
        jpeg = draw_jpeg(scene, rng, settings.image_size)
        split = "train" if i < settings.posts - settings.val_posts else "val"
        yield SamplePost(f"w{settings.seed}-{i:06d}", split, post, comments, question_extras(question, scene), jpeg)
