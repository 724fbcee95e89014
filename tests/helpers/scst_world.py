"""Four pictures with captions, for the tests of self-critical training: a data set, a model, micro-batches."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import torch

from cromic_ds.data.collate import LoadedExample, SpecialTokens, blank_batch, collate
from cromic_ds.data.dataset import Texts
from cromic_ds.data.tokenizer import encode, train_tokenizer
from cromic_ds.models.registry import build_config, build_model

SMALLEST = {
    **{"d_model": 32, "n_heads": 4, "ffn": 48, "image_size": 96, "embedding_std": 0.3, "mode": "v"},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16] * 4, "depths": [1] * 4, "layer_type": "basic"},
}

CAPTIONS = [
    ["一个红色圆形在上面", "上面有红色圆形", "红色的圆形"],
    ["一个蓝色方形在下面", "下面有蓝色方形"],
    ["两只黑狗在草地上跑", "黑狗跑", "草地上有两只黑狗"],
    ["女孩在喝水", "一个女孩喝水", "女孩和水"],
]
TASK = SimpleNamespace(tokenization="char", max_comment_tokens=12)


class Pictures:
    """What self-critical training reads of a data set."""

    fingerprint, split = "four pictures", "train"

    def __init__(self, captions: list[list[str]] = CAPTIONS):
        self.captions = captions
        self.read = 0

    def __len__(self) -> int:
        return len(self.captions)

    def texts(self, index: int) -> Texts:
        assert index >= 0
        self.read += 1
        return Texts(str(index), "", self.captions[index])


def world_tokenizer():
    return train_tokenizer([caption for captions in CAPTIONS for caption in captions], 200)


def special(tokenizer) -> SpecialTokens:
    return SpecialTokens(tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)


def make_model(tokenizer, **overrides):
    fields = {
        **{"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        **{"bos_token_id": tokenizer.cls_token_id, "decoder_start_token_id": tokenizer.cls_token_id},
        "eos_token_id": tokenizer.sep_token_id,
    }
    torch.manual_seed(0)
    return build_model(build_config("cmt", "tiny", **{**SMALLEST, **fields, **overrides})).eval()


def examples(tokenizer) -> list[LoadedExample]:
    rng = np.random.default_rng(0)
    return [
        LoadedExample(
            id=str(i),
            index=i,
            post=np.empty(0, np.int32),
            comments=encode(tokenizer, captions, 20),
            image=rng.integers(0, 256, (96, 96, 3), dtype=np.uint8),
        )
        for i, captions in enumerate(CAPTIONS)
    ]


def micro_batches(tokenizer, blank: bool = False) -> list:
    """Two micro-batches of four pictures; with `blank` nothing of the second could be read."""
    first = collate(examples(tokenizer), special=special(tokenizer), image_size=96)
    return [first, blank_batch(special(tokenizer), 96) if blank else copy.copy(first)]
