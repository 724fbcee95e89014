"""Normalization and soft scores of answers to VQA v2.0, as in its official evaluation.

The answer vocabulary (`prepare/answer_vocabulary.py`) and the metric (`vqa.py`) both use it, so that they read answers alike.
"""

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

# From each contraction's spellings without one of its apostrophes to the contraction; the last one loses its apostrophe.
CONTRACTIONS = {
    contracted[:at] + contracted[at + 1 :]: contracted
    for contracted in _CONTRACTED.split()
    for at, character in enumerate(contracted)
    if character == "'"
} | {"somebody'd": "somebodyd"}

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


def clean_answer(text: str) -> str:
    """Replace line ends and tabs by spaces and remove surrounding whitespace.

    This is all that the official tool does to answers on which all ten people agree.
    """
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalize_answer(text: str) -> str:
    """Return an answer as the official evaluation compares it, with the quirks on which its scores depend.

    Source: `processPunctuation` and `processDigitArticle` of `vqaEval.py` in the VQA v2.0 evaluation tools.

    - It applies to questions on which the ten people differ. If all ten gave the same answer, the tool normalizes neither
      theirs nor the prediction, so "two" does not match "2" there. See `clean_answer`.
    - A punctuation mark is replaced by a space, but it is removed without a space if the mark has a space beside it anywhere in
      the text. This is looked up in the original text, not in the text that earlier replacements have left.
    - If there is a comma between digits anywhere, every mark of the text is removed without a space: "1,000-2,000" becomes
      "10002000". Periods, colons, apostrophes and signs such as & and % are not among the marks.
    - A period is removed unless a digit follows ("10.30" and ".5" stay, "5." becomes "5"). The tool's expression was meant to
      require a digit before it as well, but that lookbehind is misspelled as a lookahead which always holds.
    - At most 32 periods are removed, because a flag, whose value is 32, is passed as the number of replacements.
    - Number words up to "ten" become digits, and "none" becomes "0". The articles "a", "an", "the" are removed everywhere, and
      an answer that consists of articles becomes empty.
    - Contractions get one missing apostrophe: "couldnt've" and "couldn'tve", but not "couldntve". Some are not in its list
      ("hell", "id", "lets", "shes", "were", "whyd"), those with a capital I never match because the text is in lower case at
      that point, and "somebody'd" loses its apostrophe.
    - Whitespace of any kind and length becomes one space.
    - The text is converted to lower case here, and only here: if all ten people agree, "Yes" does not match "yes".
    """
    text = clean_answer(text)
    number = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or number else " ")
    out = _PERIOD.sub("", out, count=32)
    words = (DIGITS.get(word, word) for word in out.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_scores(counts: Mapping[str, int]) -> dict[str, float]:
    """Return each answer's score from the number of people, of ten, who gave it: 1 → 0.3, 2 → 0.6, 3 → 0.9, 4 and more → 1.

    The score is the official accuracy of that answer.
    """
    return {answer: min(10, 3 * count) / 10 for answer, count in counts.items() if count}
