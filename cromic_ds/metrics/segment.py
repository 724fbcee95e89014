"""Splits text into tokens for scoring, with the three tokenizations that published numbers use."""

import functools
import re
import warnings
from typing import Any

from cromic_ds.errors import UserError, nearest

TOKENIZATIONS = ("char", "jieba", "bert")

_IDEOGRAPH = "\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHAR_TOKEN = re.compile(rf"[{_IDEOGRAPH}]|[^\W_{_IDEOGRAPH}]+|\S")
# Zero-width spaces, direction marks and emoji variation selectors: common in posts, but invisible.
_INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060\ufe0e\ufe0f\ufeff]")


def segment(text: str, tokenization: str) -> str:
    """Return the tokens of `text` joined by spaces; an empty string for a text without tokens.

    char:  each Chinese character is a token, and so are contiguous letters or digits and each other sign (MUGE's score).
    jieba: words by jieba's precise mode after "。" is removed (AIC-ICC's score).
    bert:  BERT's basic tokenization: as `char`, lower-cased and without accents (contiguous emoji are one token).

    Raises UserError for any other tokenization.
    """
    if tokenization not in TOKENIZATIONS:
        raise UserError(
            f"unknown tokenization {tokenization!r}{nearest(tokenization, TOKENIZATIONS)}: "
            f"choose one of {', '.join(TOKENIZATIONS)}"
        )
    text = _INVISIBLE.sub("", text)
    if tokenization == "char":
        return " ".join(_CHAR_TOKEN.findall(text))
    if tokenization == "jieba":
        return " ".join(word for word in _jieba().cut(text.strip().replace("。", "")) if word.strip())
    normalizer, pre_tokenizer = _bert()
    return " ".join(token for token, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))


@functools.cache
def _jieba() -> Any:
    with warnings.catch_warnings():  # its source has invalid escapes and asks for pkg_resources
        warnings.simplefilter("ignore")
        import jieba
    jieba.setLogLevel("WARNING")  # otherwise it reports on stderr how long loading its dictionary took
    return jieba.Tokenizer()


@functools.cache
def _bert() -> tuple[Any, Any]:
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    return BertNormalizer(lowercase=True), BertPreTokenizer()
