"""Scenes of three colored shapes, and the questions that can be asked about them.

The three things of a scene differ in color, shape and size, so that "the circle", "the red one", "the biggest" and "the left
one" each mean exactly one of them.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from math import factorial, perm
from typing import Any

from cromic_ds.data.order import order_key, permute

# No value is a part of another one, so a comment states a value if and only if it contains it.
COLOR_WORDS = ("红色", "橙色", "黄色", "绿色", "蓝色", "紫色", "粉色", "黑色")
SHAPE_WORDS = ("圆形", "方形", "三角形", "星形")
PLACE_WORDS = ("左边", "中间", "右边")
SIZE_WORDS = ("最大", "中等", "最小")
ATTRIBUTE_VALUES = {"color": COLOR_WORDS, "shape": SHAPE_WORDS, "place": PLACE_WORDS, "size": SIZE_WORDS}

# (asked attribute, attribute that names the thing). "what" is about the thing itself, "where" involves its place.
QUESTION_KINDS = {
    "what": (("color", "shape"), ("shape", "color")),
    "where": (("color", "place"), ("shape", "place"), ("place", "color"), ("place", "shape")),
}


@dataclass(frozen=True)
class Thing:
    """One colored shape; every field is the Chinese word for it."""

    place: str
    color: str
    shape: str
    size: str


Scene = tuple[Thing, Thing, Thing]  # from left to right

N_SCENES = perm(len(COLOR_WORDS), 3) * perm(len(SHAPE_WORDS), 3) * factorial(3)
OFFICIAL_SCENES = N_SCENES // 4  # reserved for the downstream tasks; no post shows one of them
POST_SCENES = N_SCENES - OFFICIAL_SCENES


@dataclass(frozen=True)
class SceneQuestion:
    """What is the `asked` attribute of the thing that has this value of the `named_by` attribute?"""

    kind: str  # "what" | "where"
    asked: str  # "color" | "shape" | "place"
    named_by: str  # an attribute other than `asked`
    thing: Thing

    @property
    def name(self) -> str:
        """The value by which the question names the thing."""
        return getattr(self.thing, self.named_by)

    @property
    def answer(self) -> str:
        return getattr(self.thing, self.asked)


def _arrangement(rank: int, values: tuple[str, ...], count: int) -> tuple[list[str], int]:
    """Return the arrangement of `count` different values that `rank` selects, and the remaining rank."""
    left, chosen = list(values), []
    for _ in range(count):
        rank, i = divmod(rank, len(left))
        chosen.append(left.pop(i))
    return chosen, rank


def numbered_scene(number: int) -> Scene:
    """Return the scene with this number, 0 to N_SCENES - 1; different numbers give different scenes."""
    colors, rank = _arrangement(number, COLOR_WORDS, 3)
    shapes, rank = _arrangement(rank, SHAPE_WORDS, 3)
    sizes, _ = _arrangement(rank, SIZE_WORDS, 3)
    left, middle, right = (Thing(*attributes) for attributes in zip(PLACE_WORDS, colors, shapes, sizes))
    return left, middle, right


def nth_scene(position: int, seed: int) -> Scene:
    """Return the scene at `position` of the world `seed`, which has all scenes in a pseudo-random order."""
    return numbered_scene(int(permute(position, N_SCENES, order_key(seed, 0))))


def official_scene(position: int, seed: int) -> Scene:
    """Return the scene at `position` of the downstream tasks: the world's order from its other end."""
    return nth_scene(N_SCENES - 1 - position, seed)


@lru_cache(maxsize=1024)
def scene_questions(scene: Scene) -> tuple[tuple[SceneQuestion, float], ...]:
    """Return every question that can be asked about a scene, with its probability.

    Half of them are "what" and half "where"; within a kind its types, and within a type the things, are equally likely.
    """
    questions = []
    for kind, types in QUESTION_KINDS.items():
        for asked, named_by in types:
            probability = 1 / (len(QUESTION_KINDS) * len(types) * len(scene))
            questions += [(SceneQuestion(kind, asked, named_by, thing), probability) for thing in scene]
    return tuple(questions)


def question_extras(question: SceneQuestion, scene: Scene) -> dict[str, Any]:
    """Return what is stored with a record: the scene, and what decides whether an answer is right."""
    return {
        "kind": question.kind,
        "attribute": question.asked,
        "answer": question.answer,
        "alternatives": list(ATTRIBUTE_VALUES[question.asked]),
        "scene": scene_to_json(scene),
    }


def scene_to_json(scene: Scene) -> list[dict[str, str]]:
    """Return the content of `extras["scene"]`: the three things from left to right."""
    return [asdict(thing) for thing in scene]


def scene_from_json(things: list[dict[str, str]]) -> Scene:
    """Return the scene that `scene_to_json` was given."""
    left, middle, right = (Thing(**thing) for thing in things)
    return left, middle, right
