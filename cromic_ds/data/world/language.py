"""What people write under and about a scene: posts that ask or hint, comments that state what the picture shows."""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain

import numpy as np

from cromic_ds.data.world.scenes import VALUES, Question

MIN_COMMENTS, MAX_COMMENTS = 3, 6

# {name} becomes the value by which the thing is named
NAMES = {"shape": "{name}", "colour": "{name}那个", "place": "{name}那个"}

# {x} becomes the thing's name, {a} the answer
ASKING = {
    "colour": ("{x}是什么颜色？", "猜猜{x}的颜色", "谁能说说{x}的颜色"),
    "shape": ("{x}是什么形状？", "猜猜{x}的形状", "谁能说说{x}的形状"),
    "place": ("{x}在哪里？", "猜猜{x}在哪边", "谁看见{x}了？"),
}
HINTING = {
    "colour": ("{x}的颜色真好看", "我最爱{x}的颜色"),
    "shape": ("{x}的形状真可爱", "我最爱{x}的形状"),
    "place": ("快帮我找找{x}", "{x}躲起来了"),
}
BEFORE_ASKING = ("", "", "考考你，")
BEFORE_HINTING = ("", "", "刚画的，")

COMMENTS = {
    "colour": ("{a}的", "是{a}呀", "{a}，真好看", "{x}是{a}"),
    "shape": ("是{a}", "是个{a}呀", "{a}，真可爱", "{x}是{a}"),
    "place": ("在{a}", "就在{a}呀", "{a}，很好找", "{x}在{a}"),
}
# Some people say all there is to say about the thing.
DESCRIBING = ("{place}的{colour}{shape}", "{place}那个{shape}是{colour}", "{colour}{shape}，在{place}")


def _pick(rng: np.random.Generator, phrasings: tuple[str, ...]) -> str:
    return phrasings[rng.integers(len(phrasings))]


def post(question: Question, rng: np.random.Generator) -> str:
    """A post of at most 16 characters that asks the question, or hints at it."""
    if rng.random() < 0.6:
        before, body = _pick(rng, BEFORE_ASKING), _pick(rng, ASKING[question.asked])
    else:
        before, body = _pick(rng, BEFORE_HINTING), _pick(rng, HINTING[question.asked])
    return before + body.format(x=NAMES[question.named_by].format(name=question.name))


def comments(question: Question, rng: np.random.Generator) -> list[str]:
    """Three to six comments of at most 10 characters; each states the answer and no other value of its attribute."""
    count = rng.integers(MIN_COMMENTS, MAX_COMMENTS + 1)
    phrasings = rng.choice(COMMENTS[question.asked] + DESCRIBING, size=count, replace=False)
    name, words = NAMES[question.named_by].format(name=question.name), asdict(question.thing)
    return [str(phrasing).format(a=question.answer, x=name, **words) for phrasing in phrasings]


def vocabulary_texts() -> Iterator[str]:
    """Texts with all that can be written here, the same for any number of posts: what the tokenizer is trained on.

    Latin letters, digits and common punctuation are added, so that what a person types is not lost.
    """
    phrasings = chain.from_iterable(chain(ASKING.values(), HINTING.values(), COMMENTS.values()))
    for phrasing in (*NAMES.values(), *phrasings, *DESCRIBING):
        yield phrasing.format(a="", x="", name="", place="", colour="", shape="")
    yield from chain(*VALUES.values(), BEFORE_ASKING, BEFORE_HINTING)
    yield "。、：；！…～“”《》,.!?"
    yield from (character + character for character in string.ascii_lowercase + string.digits)
