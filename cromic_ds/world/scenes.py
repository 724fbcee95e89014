"""Scenes of three colored shapes, and what can be asked about them.

The three things of a scene differ in color, in shape and in size, so that "the circle", "the red one", "the biggest"
and "the left one" each mean exactly one of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from math import factorial, perm

from cromic_ds.data.order import order_key, permute

# No value is part of another one, so that a comment states a value exactly where it contains it.
COLORS = ("红色", "橙色", "黄色", "绿色", "蓝色", "紫色", "粉色", "黑色")
SHAPES = ("圆形", "方形", "三角形", "星形")
PLACES = ("左边", "中间", "右边")
SIZES = ("最大", "中等", "最小")
VALUES = {"color": COLORS, "shape": SHAPES, "place": PLACES, "size": SIZES}

# What is asked, and by what the thing is named. "what" is about the thing itself, "where" needs to know its place.
QUESTION_TYPES = {
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

N_SCENES = perm(len(COLORS), 3) * perm(len(SHAPES), 3) * factorial(3)
OFFICIAL_SCENES = N_SCENES // 4  # kept for the downstream tasks, so that no world shows them among its posts
POST_SCENES = N_SCENES - OFFICIAL_SCENES


@dataclass(frozen=True)
class Question:
    """What the `asked` attribute is of the thing in the scene that its `named_by` attribute singles out."""

    kind: str  # "what" | "where"
    asked: str  # "color" | "shape" | "place"
    named_by: str  # an attribute other than `asked`
    thing: Thing

    @property
    def name(self) -> str:
        return getattr(self.thing, self.named_by)

    @property
    def answer(self) -> str:
        return getattr(self.thing, self.asked)


def _arrangement(rank: int, values: tuple[str, ...], count: int) -> tuple[list[str], int]:
    """The arrangement of `count` different values that `rank` selects, and what is left of `rank`."""
    left, chosen = list(values), []
    for _ in range(count):
        rank, i = divmod(rank, len(left))
        chosen.append(left.pop(i))
    return chosen, rank


def scene(index: int) -> Scene:
    """Scene number `index` of all `N_SCENES`; different numbers give different scenes."""
    colors, index = _arrangement(index, COLORS, 3)
    shapes, index = _arrangement(index, SHAPES, 3)
    sizes, _ = _arrangement(index, SIZES, 3)
    return tuple(Thing(*attributes) for attributes in zip(PLACES, colors, shapes, sizes))


def nth_scene(position: int, seed: int) -> Scene:
    """The scene at `position` of the world `seed`: all scenes in a pseudo-random order, none twice."""
    return scene(permute(position, N_SCENES, order_key(seed, 0)))


def official_scene(position: int, seed: int) -> Scene:
    """The scene at `position` of the downstream tasks: the same order from its other end."""
    return nth_scene(N_SCENES - 1 - position, seed)


@lru_cache(maxsize=1024)
def questions(things: Scene) -> tuple[tuple[Question, float], ...]:
    """Every question that can be asked about a scene, with its probability.

    Half are "what" and half "where"; within a kind its types, and within a type the things, are equally likely.
    """
    asked_questions = []
    for kind, types in QUESTION_TYPES.items():
        for asked, named_by in types:
            probability = 1 / (len(QUESTION_TYPES) * len(types) * len(things))
            for thing in things:
                asked_questions.append((Question(kind, asked, named_by, thing), probability))
    return tuple(asked_questions)


def question_extras(question: Question, things: Scene) -> dict:
    """How answers to the question are judged, and the scene: what is stored with a record."""
    return {
        "kind": question.kind,
        "attribute": question.asked,
        "answer": question.answer,
        "alternatives": list(VALUES[question.asked]),
        "scene": scene_to_json(things),
    }


def scene_to_json(things: Scene) -> list[dict[str, str]]:
    """What `extras["scene"]` holds: the three things from left to right."""
    return [asdict(thing) for thing in things]


def scene_from_json(things: list[dict[str, str]]) -> Scene:
    return tuple(Thing(**thing) for thing in things)
