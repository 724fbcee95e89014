"""The formulas against torch's own count of a real forward pass."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cromic_ds.batch import Batch
from cromic_ds.data.collate import LoadedExample, SpecialTokens, collate
from cromic_ds.models.common.kernels import install, select
from cromic_ds.models.registry import MODELS, build_config, build_model

POST, COMMENT, COMMENTS = 20, 16, 4


def batch_of(n_posts: int, image_size: int, seed: int = 0) -> Batch:
    """Posts and comments of one length, so that nothing is padded and torch counts only what the formula counts."""
    rng = np.random.default_rng(seed)

    def text(length: int) -> np.ndarray:
        return np.concatenate([[101], rng.integers(104, 3000, length - 2), [102]]).astype(np.int32)

    pictures = rng.integers(0, 256, (n_posts, image_size, image_size, 3), dtype=np.uint8)
    examples = [
        LoadedExample(str(i), i, text(POST), [text(COMMENT) for _ in range(COMMENTS)], pictures[i])
        for i in range(n_posts)
    ]
    return collate(examples, special=SpecialTokens(pad=0, cls=101, sep=102), image_size=image_size)


def model_of(name: str, preset: str = "tiny", **overrides):
    torch.manual_seed(0)
    model = build_model(build_config(name, preset, vocab_size=3000, **overrides)).eval()
    install(model, select(torch.device("cpu"), "torch", {"attention": "math"}))
    return model


def counted(model, batch: Batch) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("cmt", {}),
        ("cmt", {"mode": "t"}),
        ("cmt", {"mode": "v"}),
        ("cmt", {"preset": "small"}),
        ("vlp", {"bidirectional_rate": 0.0, "mask_rate": 0.5}),
        ("vlp", {"bidirectional_rate": 1.0, "mask_rate": 0.5}),
        ("vlp", {"objective": "causal"}),
        ("vlp", {"mode": "t"}),
        ("vilt", {}),
        ("vilt", {"decoder": "prefix"}),
        ("vilt", {"mlm_weight": 0.0, "itm_weight": 0.0}),
    ],
    ids=str,
)
def test_within_5_percent_of_a_real_forward_pass(name, overrides):
    model = model_of(name, **overrides)
    batch = model.draw(batch_of(3, model.config.image_size), seed=0)
    assert model.flops_formula()(batch) == pytest.approx(counted(model, batch), rel=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_classified_answers_take_no_decoder(name):
    model = model_of(name, n_answers=50)
    batch = batch_of(3, model.config.image_size)
    batch = dataclasses.replace(batch, answer_targets=torch.zeros(3, 50), n_targets=3)
    assert model.flops_formula()(batch) == pytest.approx(counted(model, batch), rel=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_blank_posts_count_nothing(name):
    model = model_of(name)
    size, formula = model.config.image_size, model.flops_formula()
    real, blank = batch_of(2, size), collate([], special=SpecialTokens(pad=0, cls=101, sep=102), image_size=size)
    assert formula(batch_of(4, size)) == pytest.approx(2 * formula(real), rel=1e-12)
    assert formula(blank) < 0.01 * formula(real)
