"""How far one input alone can get in the sample world: what a model must beat to show that it uses both."""

from __future__ import annotations

from collections import defaultdict
from math import sqrt

from cromic_ds.data.dataset import Dataset
from cromic_ds.errors import UserError
from cromic_ds.world.scenes import QUESTION_TYPES, Scene, questions, scene_from_json


def ceilings(dataset: Dataset) -> dict[str, float]:
    """The best grounded accuracy that text alone and image alone allow on the scenes of `dataset`.

    Both follow from the data's scenes and the known probabilities of the questions about each, so a post that happens
    to be unique gives nothing away. Text alone knows the question and gives the answer that is most frequent over all
    scenes. Image alone knows the scene and not the question; since a comment is judged by the asked attribute only, it
    may name one color, one shape and one place at once, and is credited with the most probable value of each.

    Keys: `text`, `image`, and each with `_what` and `_where` for the posts of one kind.
    Raises UserError for a data set that is not of the sample world.
    """
    scenes = [_scene(dataset, i) for i in range(len(dataset))]
    values = {}
    for name, ceiling in (("text", _text_alone), ("image", _image_alone)):
        values[name] = ceiling(scenes, tuple(QUESTION_TYPES))
        values |= {f"{name}_{kind}": ceiling(scenes, (kind,)) for kind in QUESTION_TYPES}
    return values


def at_most(share: float, posts: int) -> float:
    """What a model whose true accuracy is `share` measures on this many posts at most, but for one time in a thousand."""
    return share + 3.1 * sqrt(share * (1 - share) / posts)


def _scene(dataset: Dataset, index: int) -> Scene:
    texts = dataset.texts(index)
    if "scene" not in texts.extras:
        raise UserError(f"{texts.id}: not of the sample world, it has no scene; make a store with `cromic-ds sample`")
    return scene_from_json(texts.extras["scene"])


def _text_alone(scenes: list[Scene], kinds: tuple[str, ...]) -> float:
    """The share of the most frequent answer to each question."""
    answers: dict[tuple, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for scene in scenes:
        for question, probability in questions(scene):
            if question.kind in kinds:
                answers[question.asked, question.named_by, question.name][question.answer] += probability
    return _share_of_most_probable(answers)


def _image_alone(scenes: list[Scene], kinds: tuple[str, ...]) -> float:
    """The share of the questions about each scene that its most probable color, shape and place answer."""
    answers: dict[tuple, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for scene in scenes:
        for question, probability in questions(scene):
            if question.kind in kinds:
                answers[scene, question.asked][question.answer] += probability
    return _share_of_most_probable(answers)


def _share_of_most_probable(answers: dict[tuple, dict[str, float]]) -> float:
    best = sum(max(weights.values()) for weights in answers.values())
    return best / sum(sum(weights.values()) for weights in answers.values())
