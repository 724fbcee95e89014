import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from cromic_ds.data.limits import cut_tokens
from cromic_ds.data.tokenizer import (
    SPECIAL,
    decode_text,
    encode,
    load_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
)
from cromic_ds.errors import UserError
from cromic_ds.prepare.raw_lines import parse_line

TEXTS = ["我的猫很可爱", "这只猫叫 hello kitty", "hello world 你好", "3只猫", "hello 123", "123 只"]


@pytest.fixture
def vocab(tmp_path):
    tokens = [*SPECIAL.values(), *"我的猫你好是cabs12,.3元", "cat", "##s", "ok"]
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(dict.fromkeys(tokens)) + "\n", encoding="utf-8")
    return file


def test_vocab_is_read_as_bert_base_chinese_does(vocab):
    tokenizer = load_tokenizer(vocab)
    assert tokenizer.tokenize("我的CATS，OK\u0000 你好") == ["我", "的", "cat", "##s", "[UNK]", "ok", "你", "好"]
    assert [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id] == [0, 1, 2]
    assert (tokenizer.sep_token_id, tokenizer.mask_token_id) == (3, 4)


def test_encode_cuts_and_keeps_the_separator(vocab):
    tokenizer = load_tokenizer(vocab)
    short, long = encode(tokenizer, ["我", "我的猫你好"], 5)
    assert tokenizer.convert_ids_to_tokens(short) == ["[CLS]", "我", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(long) == ["[CLS]", "我", "的", "猫", "[SEP]"]
    assert short.dtype == long.dtype == np.int32
    assert cut_tokens(np.arange(9), 3).tolist() == [0, 1, 8]


@pytest.mark.parametrize(
    ("text", "decoded"),
    [("我 的 cats", "我的cats"), ("cat cats 你", "cat cats你"), ("3.1元", "3.1元"), ("ok, cat.", "ok, cat.")],
)
def test_decoded_text_has_spaces_only_between_words(vocab, text, decoded):
    tokenizer = load_tokenizer(vocab)
    assert decode_text(tokenizer, encode(tokenizer, [text], 40)[0]) == decoded


def test_folder_and_file_are_the_same_tokenizer(vocab, tmp_path):
    tokenizer = load_tokenizer(vocab)
    tokenizer.save_pretrained(tmp_path / "saved")
    tokenizer(["我的猫"], truncation=True, max_length=3, padding="max_length")  # leaves settings behind in the backend
    prints = {
        tokenizer_fingerprint(t) for t in (tokenizer, *map(load_tokenizer, (vocab, tmp_path, tmp_path / "saved")))
    }
    assert len(prints) == 1
    vocab.write_text(vocab.read_text(encoding="utf-8") + "新\n", encoding="utf-8")
    assert tokenizer_fingerprint(load_tokenizer(vocab)) not in prints


def test_trained_vocabulary_spells_the_corpus():
    tokenizer = train_tokenizer(TEXTS, 200)
    for text in TEXTS:
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids
    assert tokenizer.tokenize("hello 猫") == ["hello", "猫"]
    assert [tokenizer.convert_tokens_to_ids(t) for t in SPECIAL.values()] == [0, 1, 2, 3, 4]


def test_small_vocabulary_keeps_the_most_frequent_characters():
    tokenizer = train_tokenizer(["好好好好猫猫猫大大小"], 8 + 3)
    assert len(tokenizer) == 9
    assert len(train_tokenizer(["好好好好猫猫猫大大小" * 2, "abc" * 5], 11)) == 11
    assert set(train_tokenizer(["好好好好猫猫猫大大小天地人你我他"], 11).get_vocab()) >= {"好", "猫", "大"}


def test_training_is_the_same_in_every_process():
    script = (
        "import random; from cromic_ds.data.tokenizer import *; r = random.Random(0);"
        "t = [''.join(r.choice('abcdefg') for _ in range(r.randint(1, 6))) + '我' for _ in range(500)];"
        "print(tokenizer_fingerprint(train_tokenizer(t, 120)))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout != ""


def test_errors_name_what_is_wrong(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("我\n[CLS]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"not a BERT vocabulary, \[PAD\], \[UNK\], \[SEP\], \[MASK\] is missing"):
        load_tokenizer(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_tokenizer(file)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(UserError, match="vocab_size 10 is too small"):
        train_tokenizer(TEXTS, 10)


def test_seed_posts_have_the_published_token_ids(shared):
    seed = shared / "seed_data"
    tokenizer = load_tokenizer(seed / "vocab.txt")
    assert len(tokenizer) == 21_128
    published = torch.load(seed / "example_id_keys.pt", weights_only=True)
    for line, key in zip((seed / "example.txt").read_bytes().splitlines(), published["all_did"]):
        raw = parse_line(line)
        assert encode(tokenizer, [raw.post], 40)[0].tolist() == [t for t in published["id2post"][key] if t]
        for ids, expected in zip(encode(tokenizer, raw.comments, 25), published["id2cmt"][key]):
            assert ids.tolist() == [t for t in expected if t]
