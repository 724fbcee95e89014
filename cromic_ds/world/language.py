"""What people write under and about a scene: posts, questions, answers, comments and captions.

A post or question asks for, or hints at, what only the picture shows; a comment or answer states it.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain

import numpy as np

from cromic_ds.world.scenes import COLORS, SHAPES, VALUES, Question, Scene

MIN_COMMENTS, MAX_COMMENTS = 3, 6

# {name} becomes the value by which the thing is named
NAMES = {"shape": "{name}", "color": "{name}那个", "place": "{name}那个"}

# {x} becomes the thing's name, {a} the answer
ASKING = {
    "color": ("{x}是什么颜色？", "猜猜{x}的颜色", "谁能说说{x}的颜色"),
    "shape": ("{x}是什么形状？", "猜猜{x}的形状", "谁能说说{x}的形状"),
    "place": ("{x}在哪里？", "猜猜{x}在哪边", "谁看见{x}了？"),
}
HINTING = {
    "color": ("{x}的颜色真好看", "我最爱{x}的颜色"),
    "shape": ("{x}的形状真可爱", "我最爱{x}的形状"),
    "place": ("快帮我找找{x}", "{x}躲起来了"),
}
BEFORE_ASKING = ("", "", "考考你，")
BEFORE_HINTING = ("", "", "刚画的，")

COMMENTS = {
    "color": ("{a}的", "是{a}呀", "{a}，真好看", "{x}是{a}"),
    "shape": ("是{a}", "是个{a}呀", "{a}，真可爱", "{x}是{a}"),
    "place": ("在{a}", "就在{a}呀", "{a}，很好找", "{x}在{a}"),
}
# Some people say all there is to say about the thing.
DESCRIBING = ("{place}的{color}{shape}", "{place}那个{shape}是{color}", "{color}{shape}，在{place}")

ANSWERS = {
    "color": ("{x}是{a}的。", "是{a}的。"),
    "shape": ("{x}是{a}。", "是{a}。"),
    "place": ("{x}在{a}。", "在{a}。"),
}

# Words and marks stand apart by blanks, as a segmenter leaves them; {l}, {m} and {r} become the left, middle and right
# thing. Each names all three from left to right.
CAPTIONS = (
    "{l} 、 {m} 和 {r}",
    "左边 是 {l} ， 中间 是 {m} ， 右边 是 {r}",
    "{l} 在 左边 ， {m} 在 中间 ， {r} 在 右边",
    "从 左 到 右 是 {l} 、 {m} 和 {r}",
    "图 里 有 {l} 、 {m} 和 {r}",
    "左边 {l} ， 中间 {m} ， 右边 {r}",
    "一个 {l} ， 一个 {m} ， 一个 {r}",
    "先 是 {l} ， 再 是 {m} ， 最后 是 {r}",
    "这里 画 着 {l} 、 {m} 和 {r}",
    "三个 图形 ： {l} 、 {m} 、 {r}",
    "{l} 的 右边 是 {m} 和 {r}",
    "{l} 、 {m} 、 {r} 排 成 一行",
)
COMPOUNDS = tuple(color + shape for color in COLORS for shape in SHAPES)  # what a caption says of a thing


def _pick(rng: np.random.Generator, phrasings: tuple[str, ...]) -> str:
    return phrasings[rng.integers(len(phrasings))]


def _name(question: Question) -> str:
    return NAMES[question.named_by].format(name=question.name)


def ask(question: Question, rng: np.random.Generator) -> str:
    """The question in at most 12 characters."""
    return _pick(rng, ASKING[question.asked]).format(x=_name(question))


def answer(question: Question, rng: np.random.Generator) -> str:
    """A sentence of at most 10 characters that states the answer and no other value of its attribute."""
    return _pick(rng, ANSWERS[question.asked]).format(x=_name(question), a=question.answer)


def post(question: Question, rng: np.random.Generator) -> str:
    """A post of at most 16 characters that asks the question, or hints at it."""
    if rng.random() < 0.6:
        return _pick(rng, BEFORE_ASKING) + ask(question, rng)
    before, body = _pick(rng, BEFORE_HINTING), _pick(rng, HINTING[question.asked])
    return before + body.format(x=_name(question))


def comments(question: Question, rng: np.random.Generator) -> list[str]:
    """Three to six comments of at most 10 characters; each states the answer and no other value of its attribute."""
    count = rng.integers(MIN_COMMENTS, MAX_COMMENTS + 1)
    phrasings = rng.choice(COMMENTS[question.asked] + DESCRIBING, size=count, replace=False)
    words = asdict(question.thing)
    return [str(phrasing).format(a=question.answer, x=_name(question), **words) for phrasing in phrasings]


def captions(things: Scene, rng: np.random.Generator, count: int) -> list[str]:
    """`count` different captions, their words apart by blanks; `joined` makes text of at most 24 characters of one."""
    left, middle, right = (f"{thing.color} {thing.shape}" for thing in things)
    phrasings = rng.choice(CAPTIONS, size=count, replace=False)
    return [str(phrasing).format(l=left, m=middle, r=right) for phrasing in phrasings]


def joined(words: str) -> str:
    """Segmented text as people write it."""
    return words.replace(" ", "")


def vocabulary_texts() -> Iterator[str]:
    """Texts with all that can be written here, the same for any number of posts: what the tokenizer is trained on.

    Latin letters, digits and common punctuation are added, so that what a person types is not lost.
    """
    groups = (*ASKING.values(), *HINTING.values(), *COMMENTS.values(), *ANSWERS.values(), CAPTIONS)
    blank = dict.fromkeys(("a", "x", "name", "place", "color", "shape", "l", "m", "r"), "")
    for phrasing in (*NAMES.values(), *chain(*groups), *DESCRIBING):
        yield phrasing.format(**blank)
    yield from chain(*VALUES.values(), BEFORE_ASKING, BEFORE_HINTING)
    yield "。、：；！…～“”《》,.!?"
    yield from (character + character for character in string.ascii_lowercase + string.digits)
