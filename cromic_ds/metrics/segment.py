"""Cutting text into tokens for scoring: the three tokenizations that published numbers use."""

from __future__ import annotations

import functools
import re
import warnings

from cromic_ds.errors import UserError, nearest

TOKENIZATIONS = ("char", "jieba", "bert")

_IDEOGRAPH = "\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHAR_TOKEN = re.compile(rf"[{_IDEOGRAPH}]|[^\W_{_IDEOGRAPH}]+|\S")
# Zero-width blanks, direction marks and emoji variation selectors: common in posts, seen by nobody, equal to nothing.
_INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060\ufe0e\ufe0f\ufeff]")


def segment(text: str, tokenization: str) -> str:
    """The tokens of `text` joined by one blank; an empty string for a text without tokens.

    char:  each Chinese character alone, contiguous letters or digits one token, each other sign alone (as MUGE scores).
    jieba: words by jieba's precise mode after dropping "。" (as AIC-ICC scores).
    bert:  BERT's basic tokenization: as `char`, and lower-cased with accents stripped (contiguous emoji stay together).

    Raises UserError for another tokenization.
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
def _jieba():
    with warnings.catch_warnings():  # its source has invalid escapes and asks for pkg_resources
        warnings.simplefilter("ignore")
        import jieba
    jieba.setLogLevel("WARNING")  # else it tells on stderr how long its dictionary took
    return jieba.Tokenizer()


@functools.cache
def _bert():
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    return BertNormalizer(lowercase=True), BertPreTokenizer()
