"""The texts about a scene: posts, questions, answers, comments and captions.

A post or question asks for, or hints at, something that only the picture shows; a comment or answer states it.
"""

import string
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain

import numpy as np

from cromic_ds.world.scenes import ATTRIBUTE_VALUES, COLOR_WORDS, SHAPE_WORDS, Scene, SceneQuestion

# {name} is replaced by the value that names the thing
NAME_PHRASES = {"shape": "{name}", "color": "{name}那个", "place": "{name}那个"}

# {x} is replaced by the thing's name, {a} by the answer
QUESTION_PHRASES = {
    "color": ("{x}是什么颜色？", "猜猜{x}的颜色", "谁能说说{x}的颜色"),
    "shape": ("{x}是什么形状？", "猜猜{x}的形状", "谁能说说{x}的形状"),
    "place": ("{x}在哪里？", "猜猜{x}在哪边", "谁看见{x}了？"),
}
HINT_PHRASES = {
    "color": ("{x}的颜色真好看", "我最爱{x}的颜色"),
    "shape": ("{x}的形状真可爱", "我最爱{x}的形状"),
    "place": ("快帮我找找{x}", "{x}躲起来了"),
}
QUESTION_OPENINGS = ("", "", "考考你，")
HINT_OPENINGS = ("", "", "刚画的，")

COMMENT_PHRASES = {
    "color": ("{a}的", "是{a}呀", "{a}，真好看", "{x}是{a}"),
    "shape": ("是{a}", "是个{a}呀", "{a}，真可爱", "{x}是{a}"),
    "place": ("在{a}", "就在{a}呀", "{a}，很好找", "{x}在{a}"),
}
# Some comments describe the thing completely.
DESCRIPTION_PHRASES = ("{place}的{color}{shape}", "{place}那个{shape}是{color}", "{color}{shape}，在{place}")

ANSWER_PHRASES = {
    "color": ("{x}是{a}的。", "是{a}的。"),
    "shape": ("{x}是{a}。", "是{a}。"),
    "place": ("{x}在{a}。", "在{a}。"),
}

# Words and punctuation marks are separated by spaces, as a segmenter does it. {l}, {m} and {r} are replaced by the left, middle
# and right thing. Each phrase names all three from left to right.
CAPTION_PHRASES = (
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
COMPOUNDS = tuple(color + shape for color in COLOR_WORDS for shape in SHAPE_WORDS)  # what a caption says of a thing


def _pick(rng: np.random.Generator, phrasings: tuple[str, ...]) -> str:
    return phrasings[rng.integers(len(phrasings))]


def _name(question: SceneQuestion) -> str:
    return NAME_PHRASES[question.named_by].format(name=question.name)


def write_question(question: SceneQuestion, rng: np.random.Generator) -> str:
    """Return the question in at most 12 characters."""
    return _pick(rng, QUESTION_PHRASES[question.asked]).format(x=_name(question))


def write_answer(question: SceneQuestion, rng: np.random.Generator) -> str:
    """Return a sentence of at most 10 characters that states the answer and no other value of its attribute."""
    return _pick(rng, ANSWER_PHRASES[question.asked]).format(x=_name(question), a=question.answer)


def write_post(question: SceneQuestion, rng: np.random.Generator) -> str:
    """Return a post of at most 16 characters that asks the question or hints at it."""
    if rng.random() < 0.6:
        return _pick(rng, QUESTION_OPENINGS) + write_question(question, rng)
    return _pick(rng, HINT_OPENINGS) + _pick(rng, HINT_PHRASES[question.asked]).format(x=_name(question))


def write_comments(question: SceneQuestion, rng: np.random.Generator) -> list[str]:
    """Return three to six comments of at most 10 characters; each states the answer and no other value of its attribute."""
    count = rng.integers(3, 6 + 1)
    phrasings = rng.choice(COMMENT_PHRASES[question.asked] + DESCRIPTION_PHRASES, size=count, replace=False)
    words = asdict(question.thing)
    return [str(phrasing).format(a=question.answer, x=_name(question), **words) for phrasing in phrasings]


def write_captions(scene: Scene, rng: np.random.Generator, count: int) -> list[str]:
    """Return `count` different captions, their words separated by spaces; without spaces they have at most 24 characters."""
    left, middle, right = (f"{thing.color} {thing.shape}" for thing in scene)
    phrasings = rng.choice(CAPTION_PHRASES, size=count, replace=False)
    return [str(phrasing).format(l=left, m=middle, r=right) for phrasing in phrasings]


def without_spaces(words: str) -> str:
    """Return segmented text as people write it."""
    return words.replace(" ", "")


def vocabulary_texts() -> Iterator[str]:
    """Yield texts with everything that can be written here, the same for any number of posts, to train the tokenizer on.

    Latin letters, digits and common punctuation are added, so that they are not unknown when a person types them.
    """
    by_attribute = (QUESTION_PHRASES, HINT_PHRASES, COMMENT_PHRASES, ANSWER_PHRASES)
    groups = chain(*(phrases.values() for phrases in by_attribute), (CAPTION_PHRASES, DESCRIPTION_PHRASES))
    empty = dict.fromkeys(("a", "x", "name", "place", "color", "shape", "l", "m", "r"), "")
    yield from (phrasing.format(**empty) for phrasing in chain(NAME_PHRASES.values(), *groups))
    yield from chain(*ATTRIBUTE_VALUES.values(), QUESTION_OPENINGS, HINT_OPENINGS)
    yield "。、：；！…～“”《》,.!?"
    yield from (character + character for character in string.ascii_lowercase + string.digits)
