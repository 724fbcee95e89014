"""The formula against torch's own count of a real forward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cromic_ds.batch import Batch
from cromic_ds.data.collate import LoadedExample, SpecialTokens, collate
from cromic_ds.models import build_config, build_model
from cromic_ds.models.kernels import KernelSettings, install, select
from cromic_ds.training.flops import flops_formula

POST, COMMENT, COMMENTS = 20, 16, 4


def batch_of(n_posts: int, image_size: int, seed: int = 0) -> Batch:
    """Posts and comments of one length, so that nothing is padded and torch counts only what the formula counts."""
    rng = np.random.default_rng(seed)

    def text(length: int) -> np.ndarray:
        return np.concatenate([[101], rng.integers(103, 3000, length - 2), [102]]).astype(np.int32)

    pictures = rng.integers(0, 256, (n_posts, image_size, image_size, 3), dtype=np.uint8)
    examples = [
        LoadedExample(str(i), i, text(POST), [text(COMMENT) for _ in range(COMMENTS)], pictures[i])
        for i in range(n_posts)
    ]
    return collate(examples, special=SpecialTokens(pad=0, cls=101, sep=102), image_size=image_size)


def counted(model, batch: Batch) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch)
    return counter.get_total_flops()


@pytest.mark.parametrize(("preset", "mode"), [("tiny", "t+v"), ("tiny", "t"), ("tiny", "v"), ("small", "t+v")])
def test_within_5_percent_of_a_real_forward_pass(preset, mode):
    torch.manual_seed(0)
    model = build_model(build_config("cmt", preset, mode=mode, vocab_size=3000)).eval()
    install(model, select(KernelSettings(attention="math", linear_cross_entropy="torch"), torch.device("cpu")))
    batch = batch_of(3, model.config.image_size)
    assert flops_formula(model)(batch) == pytest.approx(counted(model, batch), rel=0.05)


def test_blank_posts_count_nothing():
    model = build_model(build_config("cmt", "tiny", vocab_size=3000))
    formula = flops_formula(model)
    real, blank = batch_of(2, 112), collate([], special=SpecialTokens(pad=0, cls=101, sep=102), image_size=112)
    assert formula(batch_of(4, 112)) == pytest.approx(2 * formula(real), rel=1e-12)
    assert formula(blank) < 0.01 * formula(real)
