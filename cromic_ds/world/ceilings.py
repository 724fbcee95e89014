"""The best scores that one input alone allows in the sample world. A model that beats them uses both inputs."""

from collections import defaultdict
from math import sqrt

from cromic_ds.data.dataset import Dataset
from cromic_ds.errors import UserError
from cromic_ds.world.scenes import QUESTION_KINDS, Scene, scene_from_json, scene_questions


def ceilings(dataset: Dataset) -> dict[str, float]:
    """Return the best grounded accuracy that the text alone and the image alone allow on the scenes of `dataset`.

    Both are computed from the scenes and the known probabilities of the questions about each, not from the questions that the
    posts happen to ask. Given the text alone, the best answer is the most frequent one over all scenes. Given the image alone,
    the question is unknown. Since a comment is judged by the asked attribute only, it may name one color, one shape and one
    place at once, and is credited with the most probable value of each.

    Keys: `text`, `image`, and each with `_what` and `_where` for the questions of one kind. Raises UserError for data that is
    not from the sample world.
    """
    scenes = [_scene(dataset, i) for i in range(len(dataset))]
    values = {}
    for name in ("text", "image"):
        values[name] = _best_accuracy(scenes, tuple(QUESTION_KINDS), name)
        values |= {f"{name}_{kind}": _best_accuracy(scenes, (kind,), name) for kind in QUESTION_KINDS}
    return values


def at_most(share: float, posts: int) -> float:
    """Upper bound on the measured accuracy over this many posts if the true one is `share`; exceeded once in a thousand."""
    return share + 3.1 * sqrt(share * (1 - share) / posts)


def _scene(dataset: Dataset, index: int) -> Scene:
    texts = dataset.texts(index)
    if "scene" not in texts.extras:
        raise UserError(f"{texts.id}: not of the sample world, it has no scene; make a store with `cromic-ds sample`")
    return scene_from_json(texts.extras["scene"])


def _best_accuracy(scenes: list[Scene], kinds: tuple[str, ...], given: str) -> float:
    """Return the accuracy of the most probable answer given the question's words (`text`) or the scene alone (`image`)."""
    answers: dict[tuple, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for scene in scenes:
        for question, probability in scene_questions(scene):
            if question.kind in kinds:
                known = (question.named_by, question.name) if given == "text" else scene
                answers[question.asked, known][question.answer] += probability
    best = sum(max(weights.values()) for weights in answers.values())
    return best / sum(sum(weights.values()) for weights in answers.values())
