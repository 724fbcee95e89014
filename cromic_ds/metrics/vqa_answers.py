"""Answers to VQA v2.0 as its official evaluation sees them: the normalization of their text, their soft scores, and the
fingerprint of an answer vocabulary.

A leaf like `errors` and `batch`: the data's answer vocabulary and the metric must read an answer alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

ARTICLES = frozenset(("a", "an", "the"))

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}

_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""

# Each contraction under its spellings without one of its apostrophes, and one that loses its own.
CONTRACTIONS = {
    contracted[:at] + contracted[at + 1 :]: contracted
    for contracted in _CONTRACTED.split()
    for at, character in enumerate(contracted)
    if character == "'"
} | {"somebody'd": "somebodyd"}

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32


def clean_answer(text: str) -> str:
    """All that the official tool does to answers on which all ten people agree: line ends and tabs become blanks, and
    blanks around go."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalize_answer(text: str) -> str:
    """An answer as the official evaluation compares it, with the quirks that its scores depend on.

    Source: `processPunctuation` and `processDigitArticle` of `vqaEval.py` in the VQA v2.0 evaluation tools.

    - It is for questions on which the ten people differ. Where all ten gave the same answer, the tool normalizes
      neither theirs nor the prediction: "two" does not match "2" there. See `clean_answer`.
    - A punctuation mark becomes a blank, but is dropped without one where it has a blank beside it anywhere in the
      text. Whether it has is looked up in the text as it came, not as the marks before it have left it.
    - One comma between digits anywhere makes every mark of the text be dropped without a blank: "1,000-2,000" becomes
      "10002000". Full stops, colons, apostrophes and signs such as & and % are not among the marks.
    - A full stop goes unless a digit follows ("10.30" and ".5" stay, "5." becomes "5"). The tool's expression means to
      ask for a digit before it as well, but misspells that lookbehind as a lookahead which always holds.
    - At most 32 full stops go, because a flag, whose value is 32, is passed where the number of replacements belongs.
    - Number words up to "ten" become digits, and so does "none": "0". The articles "a", "an", "the" go, wherever they
      stand, and an answer of nothing else becomes empty.
    - Contractions get one missing apostrophe: "couldnt've" and "couldn'tve", but not "couldntve". Some are not known
      ("hell", "id", "lets", "shes", "were", "whyd"), those with a capital I never match because the text is in lower
      case by then, and "somebody'd" loses its apostrophe.
    - Blanks of any kind and number become one blank.
    - Case goes here, and only here: where all ten agree, "Yes" does not match "yes".
    """
    text = clean_answer(text)
    number = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_blank or number else " ")
    out = _PERIOD.sub("", out, count=_MOST_PERIODS)
    words = (DIGITS.get(word, word) for word in out.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_scores(counts: Mapping[str, int]) -> dict[str, float]:
    """The score of each answer from how many of the ten people gave it: 1 → 0.3, 2 → 0.6, 3 → 0.9, 4 and more → 1.

    It is the official accuracy of giving that answer.
    """
    return {answer: min(10, 3 * count) / 10 for answer, count in counts.items() if count}
