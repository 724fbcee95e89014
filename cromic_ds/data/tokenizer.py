"""BERT-style WordPiece tokenizers: loading, training, fingerprints, encoding and decoding."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from cromic_ds.data.limits import cut_tokens
from cromic_ds.errors import UserError
from cromic_ds.files import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def load_tokenizer(spec: str | Path) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a `vocab.txt`, a folder (Hub format, or with a `vocab.txt`) or a name on the Hub.

    A `vocab.txt` is used as by bert-base-chinese: texts are cleaned and lower-cased, and each Chinese character is a word.
    Raises UserError if it cannot be loaded or lacks [PAD], [UNK], [CLS], [SEP] or [MASK].
    """
    path = Path(spec)
    if path.is_dir() and not (path / "tokenizer.json").is_file() and (path / "vocab.txt").is_file():
        path = path / "vocab.txt"
    if path.is_file():
        return _wordpiece(_read_vocabulary(path), str(spec))
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(spec), use_fast=True)
    except Exception as error:  # for an unknown folder the library raises anything from OSError to KeyError
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"tokenizer {str(spec)!r} cannot be loaded ({first_line}); "
            "give a vocab.txt, a tokenizer folder, or a name on the Hub"
        ) from None
    missing = [token for name, token in SPECIAL.items() if getattr(tokenizer, name, None) is None]
    if missing or not tokenizer.is_fast:
        what = f"has no {', '.join(missing)}" if missing else "has no fast version"
        raise UserError(f"tokenizer {str(spec)!r} {what}; use a BERT-style one, such as bert-base-chinese")
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn a WordPiece vocabulary of at most `vocab_size` tokens. The same texts always give the same vocabulary.

    Single characters come first, the most frequent ones if not all fit; pieces of longer words (Latin letters, digits)
    fill the rest. The library's WordPiece trainer numbers `##` symbols in hash order, which differs between runs. Its
    byte-pair trainer is deterministic and learns the same merges, so it is used here with characters inside a word moved
    to a private plane of Unicode instead of marked with `##`.
    """
    if vocab_size <= 2 * len(SPECIAL):
        raise UserError(f"vocab_size {vocab_size} is too small: it includes {len(SPECIAL)} special tokens")
    words = _count_words(texts)
    symbols: Counter[str] = Counter()
    for word, count in words.items():
        for symbol in _shift(word):
            symbols[symbol] += count
    room = vocab_size - len(SPECIAL)
    by_frequency = sorted(symbols, key=lambda s: (-symbols[s], s))[:room]
    pieces = _learn_pieces(words, set(by_frequency), room) if len(by_frequency) < room else []
    tokens = [*SPECIAL.values(), *(_unshift(piece) for piece in [*by_frequency, *pieces])]
    return _wordpiece({token: i for i, token in enumerate(tokens)}, "train")


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a hash, 16 hexadecimal digits, of tokenizer.json without its truncation and padding settings."""
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    return digest(plain.to_str(pretty=False))


def encode(tokenizer: PreTrainedTokenizerFast | Tokenizer, texts: list[str], max_tokens: int) -> list[np.ndarray]:
    """Return the int32 ids `[CLS] … [SEP]` of each text, cut to `max_tokens` with [SEP] kept.

    Preparation's workers give a `tokenizers.Tokenizer`, which they load without importing transformers.
    """
    fast = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
    return [cut_tokens(np.array(encoding.ids, np.int32), max_tokens) for encoding in fast.encode_batch_fast(texts)]


def decode_text(tokenizer: PreTrainedTokenizerFast, ids: Iterable[int]) -> str:
    """Return the text of token ids, without special tokens, and with spaces only between Latin words or numbers."""
    text = tokenizer.decode([int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return _SPACE_TO_DROP.sub("", str(text)).strip()


# A space stays between letters or digits of alphabetic scripts, and between Western punctuation and such a letter or digit.
_ALPHABETIC = r"0-9A-Za-z\u00c0-\u024f\u0370-\u052f"
_SPACE_TO_DROP = re.compile(
    rf"(?<![{_ALPHABETIC},.!?;:%)\]]) +| +(?![{_ALPHABETIC}(\[])"  # one side is not alphabetic
    r"|(?<=[0-9] [.,:]) +(?=[0-9])"  # 3 . 5
)


def _read_vocabulary(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a vocabulary (not UTF-8 text); give a vocab.txt with one token a line") from None
    return {line.rstrip("\r"): i for i, line in enumerate(lines)}


def _wordpiece(vocabulary: dict[str, int], source: str) -> PreTrainedTokenizerFast:
    """Build the tokenizer of bert-base-chinese as transformers does, but independently of that library's version."""
    from transformers import PreTrainedTokenizerFast

    if missing := [token for token in SPECIAL.values() if token not in vocabulary]:
        what = f"not a BERT vocabulary, {', '.join(missing)} is missing"
        raise UserError(f"{source}: {what}; give a vocab.txt with one token a line")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


_PRIVATE_PLANE = 0xF0000


def _shift(word: str) -> str:
    """Move all characters but the first to a private plane; characters beyond the first plane stay as they are."""
    return word[:1] + "".join(chr(ord(c) + _PRIVATE_PLANE) if ord(c) < 0xFFFE else c for c in word[1:])


def _unshift(piece: str) -> str:
    """Return the WordPiece token of a piece, with `##` in front if it begins inside a word."""
    text = "".join(chr(ord(c) - _PRIVATE_PLANE) if ord(c) >= _PRIVATE_PLANE else c for c in piece)
    return f"##{text}" if ord(piece[0]) >= _PRIVATE_PLANE else text


def _count_words(texts: Iterable[str]) -> Counter[str]:
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    return words


def _learn_pieces(words: Counter[str], alphabet: set[str], vocab_size: int) -> list[str]:
    """Learn byte-pair merges over the words that the alphabet can spell, most frequent pair first."""

    def shifted() -> Iterator[str]:
        for word in sorted(words):
            if len(word) > 1 and alphabet.issuperset(spelled := _shift(word)):
                for done in range(0, words[word], 1000):
                    yield f"{spelled} " * min(1000, words[word] - done)

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(alphabet), min_frequency=2, show_progress=False
    )
    learner.train_from_iterator(shifted(), trainer)
    learned = learner.get_vocab()
    return sorted((piece for piece in learned if len(piece) > 1), key=learned.__getitem__)
