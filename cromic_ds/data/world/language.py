"""What people write under and about a scene: posts that ask or hint, comments that state what the picture shows."""

from __future__ import annotations

import string
from collections.abc import Iterator
from itertools import chain

import numpy as np

from cromic_ds.data.world.scenes import VALUES, Question

MIN_COMMENTS, MAX_COMMENTS = 3, 6

# {name} becomes the value by which the thing is named
NAMES = {
    "shape": ("{name}", "这个{name}"),
    "colour": ("{name}那个", "{name}图形"),
    "size": ("{name}那个", "{name}的那个"),
    "place": ("{name}那个", "{name}这个"),
}

# {x} becomes the thing's name, {a} the answer
ASKING = {
    "colour": ("{x}是什么颜色？", "{x}是啥颜色呀", "猜猜{x}是什么颜色", "谁能说说{x}的颜色", "{x}涂了什么颜色？"),
    "shape": ("{x}是什么形状？", "{x}是啥形状呀", "猜猜{x}是什么形状", "谁能说说{x}的形状", "{x}长什么样？"),
    "place": ("{x}在哪里？", "{x}在哪边呀", "猜猜{x}在哪边", "谁看见{x}了？", "{x}藏在哪里呢"),
}
HINTING = {
    "colour": ("{x}的颜色真好看", "我最爱{x}的颜色", "{x}这颜色绝了", "为{x}的颜色心动"),
    "shape": ("{x}的形状真可爱", "我最爱{x}的形状", "{x}这形状绝了", "为{x}的形状心动"),
    "place": ("{x}的位置刚刚好", "快帮我找找{x}", "{x}躲起来了", "一眼就看到{x}了"),
}
BEFORE_ASKING = ("", "", "考考你，", "大家看，")
BEFORE_HINTING = ("", "", "刚画的，", "发张图，")

COMMENTS = {
    "colour": (
        "{a}的",
        "是{a}",
        "{a}呀",
        "{a}吧",
        "当然是{a}",
        "明明是{a}啦",
        "我看是{a}的",
        "哈哈，{a}",
        "{a}，真好看",
        "好漂亮的{a}",
        "我也喜欢{a}",
        "{x}是{a}",
        "嗯，是{a}没错",
    ),
    "shape": (
        "是{a}",
        "是个{a}",
        "{a}呀",
        "{a}吧",
        "当然是{a}",
        "明明是{a}啦",
        "我看是{a}",
        "哈哈，{a}",
        "{a}，真可爱",
        "好可爱的{a}",
        "我也喜欢{a}",
        "{x}是{a}",
        "嗯，是{a}没错",
    ),
    "place": (
        "在{a}",
        "{a}呀",
        "{a}吧",
        "就在{a}",
        "在{a}呢",
        "明明在{a}啦",
        "我看在{a}",
        "哈哈，{a}",
        "{a}，很好找",
        "看到了，{a}",
        "往{a}看",
        "{x}在{a}",
        "嗯，在{a}没错",
    ),
}


def _pick(rng: np.random.Generator, phrasings: tuple[str, ...]) -> str:
    return phrasings[rng.integers(len(phrasings))]


def _named(rng: np.random.Generator, question: Question) -> str:
    return _pick(rng, NAMES[question.named_by]).format(name=question.name)


def post(question: Question, rng: np.random.Generator) -> str:
    """A post of at most 16 characters that asks the question, or hints at it."""
    if rng.random() < 0.6:
        before, body = _pick(rng, BEFORE_ASKING), _pick(rng, ASKING[question.asked])
    else:
        before, body = _pick(rng, BEFORE_HINTING), _pick(rng, HINTING[question.asked])
    return before + body.format(x=_named(rng, question))


def comments(question: Question, rng: np.random.Generator) -> list[str]:
    """Three to six comments of at most 10 characters; each states the answer and no other value of its attribute."""
    count = rng.integers(MIN_COMMENTS, MAX_COMMENTS + 1)
    phrasings = rng.choice(COMMENTS[question.asked], size=count, replace=False)
    return [str(phrasing).format(a=question.answer, x=_named(rng, question)) for phrasing in phrasings]


def vocabulary_texts() -> Iterator[str]:
    """Texts with all that can be written here, the same for any number of posts: what the tokenizer is trained on.

    Latin letters, digits and common punctuation are added, so that what a person types is not lost.
    """
    for group in (NAMES, ASKING, HINTING, COMMENTS, VALUES):
        for phrasing in chain.from_iterable(group.values()):
            yield phrasing.format(a="", x="", name="")
    yield from (*BEFORE_ASKING, *BEFORE_HINTING)
    yield "。、：；！…～“”《》,.!?"
    yield from (character + character for character in string.ascii_lowercase + string.digits)
