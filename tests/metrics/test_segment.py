import pytest

from cromic_ds.errors import UserError
from cromic_ds.metrics.segment import TOKENIZATIONS, segment


@pytest.mark.parametrize(
    ("text", "tokenization", "expected"),
    [
        ("我有iPhone15，哈哈!", "char", "我 有 iPhone15 ， 哈 哈 !"),
        ("我有iPhone15，哈哈!", "bert", "我 有 iphone15 ， 哈 哈 !"),
        ("我有3.5个  café", "char", "我 有 3 . 5 个 café"),
        ("我有3.5个  café", "bert", "我 有 3 . 5 个 cafe"),
        ("😀😀_a", "char", "😀 😀 _ a"),
        ("カメラ𠮷", "char", "カ メ ラ 𠮷"),
        ("看\u200b图\ufe0f\ufeff", "char", "看 图"),
        ("看\u200b图\ufe0f\ufeff", "bert", "看 图"),
        ("一个男人在草地上踢足球。", "jieba", "一个 男人 在 草地 上 踢足球"),
        ("a\tb\n c", "jieba", "a b c"),
    ],
)
def test_tokens(text, tokenization, expected):
    assert segment(text, tokenization) == expected


@pytest.mark.parametrize("tokenization", TOKENIZATIONS)
@pytest.mark.parametrize("text", ["", " \n", "\u3000", "\u200b"])
def test_text_without_tokens(text, tokenization):
    assert segment(text, tokenization) == ""


@pytest.mark.parametrize("tokenization", TOKENIZATIONS)
def test_tokens_survive_a_second_cut(tokenization):
    once = segment("大家好, 我没有苹果\\。OK?", tokenization)
    assert segment(once, tokenization) == once
    assert "  " not in once


def test_bert_is_what_the_bert_tokenizer_cuts_before_wordpiece():
    from transformers.models.bert.tokenization_bert_legacy import BasicTokenizer

    text = "这车Ämter在瞪 老子呀…#tag 12%，Ｆｕｌｌ"
    assert segment(text, "bert").split() == BasicTokenizer(do_lower_case=True).tokenize(text)


def test_unknown_tokenization_names_the_nearest():
    with pytest.raises(UserError, match=r"'jeiba'.*did you mean 'jieba'"):
        segment("好", "jeiba")
