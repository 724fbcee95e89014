"""A CMT of a few thousand weights, and a batch of three posts with two, one and three comments of different lengths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cromic_ds.batch import Batch
from cromic_ds.data.collate import LoadedExample, SpecialTokens, collate
from cromic_ds.models.cmt.model import CMTModel
from cromic_ds.models.registry import build_config, build_model

SMALLEST = {
    "vocab_size": 120,  # [CLS] and [SEP] are 101 and 102
    "d_model": 32,
    "n_heads": 4,
    "ffn": 48,
    "image_size": 96,  # 2×2 image tokens
    # oneDNN crashes in the gradient of a strided 1×1 convolution of fewer than 16 channels (channels last, two threads).
    "resnet": {"embedding_size": 16, "hidden_sizes": [16] * 4, "depths": [1] * 4, "layer_type": "basic"},
    "embedding_std": 0.3,  # large enough for untrained logits to differ
}
POSTS = [[101, 7, 8, 9, 10, 102], [101, 11, 102], [101, 12, 13, 14, 102]]
COMMENTS = [
    [[101, 20, 21, 102], [101, 22, 23, 24, 25, 26, 102]],
    [[101, 27, 102]],
    [[101, 28, 29, 102], [101, 30, 102], [101, 31, 32, 33, 102]],
]


@pytest.fixture
def smallest() -> Callable[..., CMTModel]:
    """smallest(field=value, …): a model in evaluation mode, the same weights each time."""

    def build(**overrides) -> CMTModel:
        torch.manual_seed(0)
        return build_model(build_config("cmt", "tiny", **{**SMALLEST, **overrides})).eval()

    return build


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """make_batch(0, 2): the posts of these numbers with their comments and random pictures; all of them by default."""

    def build(*which: int) -> Batch:
        pictures = np.random.default_rng(0).integers(0, 256, (len(POSTS), 96, 96, 3), dtype=np.uint8)
        examples = [
            LoadedExample(str(i), i, np.array(POSTS[i]), [np.array(c) for c in COMMENTS[i]], pictures[i])
            for i in which or range(len(POSTS))
        ]
        return collate(examples, special=SpecialTokens(pad=0, cls=101, sep=102), image_size=96)

    return build
