"""Pixels to tokens, and the three modes of batch norm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.paths import HELPERS
from torch import nn

from cromic_ds.models.cmt.config import CMTConfig
from cromic_ds.models.cmt.layers import PooledGridEncoder
from cromic_ds.models.common.config import grid_side
from cromic_ds.models.common.image_encoder import BatchNorm, normalize_imagenet, set_batch_norm

RESNET = {"embedding_size": 16, "hidden_sizes": [16] * 4, "depths": [1] * 4, "layer_type": "basic"}


def encoder(batch_norm: str, norm: str = "l2", size: int = 96) -> PooledGridEncoder:
    torch.manual_seed(0)
    config = CMTConfig(resnet=RESNET, d_model=12, n_heads=1, image_size=size, image_norm=norm, batch_norm=batch_norm)
    return PooledGridEncoder(config)


def images(n: int, size: int = 96) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=draw)


def statistics(module: nn.Module) -> list[torch.Tensor]:
    return [b.clone() for b in module.buffers() if b.is_floating_point()]


def test_pixels_are_normalized_by_imagenet():
    black, white = (
        normalize_imagenet(torch.zeros(1, 3, 1, 1, dtype=torch.uint8)),
        normalize_imagenet(torch.full((1, 3, 1, 1), 255).byte()),
    )
    torch.testing.assert_close(black.flatten(), torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
    torch.testing.assert_close(white.flatten(), torch.tensor([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]))
    ready = torch.rand(1, 3, 2, 2)
    assert normalize_imagenet(ready) is ready


@pytest.mark.parametrize("size", [64, 96, 112, 224, 250])
def test_number_of_tokens(size):
    model = encoder("frozen", size=size)
    tokens = model(images(1, size))
    assert tokens.shape == (1, model.n_tokens, 12) == (1, grid_side(size) ** 2, 12)


def test_tokens_have_unit_length_or_unit_variance():
    torch.testing.assert_close(encoder("frozen")(images(2)).norm(dim=-1), torch.ones(2, 4))
    tokens = encoder("frozen", norm="layer")(images(2))
    torch.testing.assert_close(tokens.var(dim=-1, unbiased=False), torch.ones(2, 4), rtol=1e-2, atol=0)


def test_frozen_statistics_stay_and_examples_do_not_mix():
    model = encoder("frozen").train()
    before = statistics(model)
    together = model(images(3))
    alone = torch.cat([model(image[None]) for image in images(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(model)))


def test_batch_mode_is_torchs_batch_norm():
    ours, torchs = BatchNorm(5).train(), nn.BatchNorm2d(5).train()
    x = torch.randn(4, 5, 3, 3) * 3 + 1
    torch.testing.assert_close(ours(x), torchs(x), rtol=0, atol=0)
    torch.testing.assert_close(ours.running_var, torchs.running_var, rtol=0, atol=0)
    assert ours.num_batches_tracked == 1
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x), rtol=0, atol=0)


def test_set_batch_norm_reaches_every_one():
    model = encoder("batch")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 1 + 2 * 4 + 3 + 1  # stem, two a block, three shortcuts, the head's
    assert all(isinstance(m, BatchNorm) and m.mode == "batch" for m in norms)
    set_batch_norm(model, "frozen")
    assert all(m.mode == "frozen" for m in norms)


def test_calibration_gives_frozen_the_statistics_of_the_images():
    model, reference = encoder("frozen").train(), encoder("batch").train()
    reference.load_state_dict(model.state_dict())
    model.calibrate(images(16))
    assert all(
        m.mode == "frozen" and m.momentum == 0.1 and m.training for m in model.modules() if isinstance(m, BatchNorm)
    )
    # torch keeps the unbiased variance and normalizes by the biased one: 2×2 tokens of 16 images, so within 1/64
    torch.testing.assert_close(model(images(16)), reference(images(16)), rtol=0, atol=0.02)
    assert (encoder("frozen")(images(16)) - reference(images(16))).abs().max() > 0.1


def test_sync_over_two_processes_is_one_process_on_the_whole_batch(tmp_path: Path):
    sizes = [4, 2]  # not the same number of images on both ranks
    torch.manual_seed(0)
    x, towards = torch.randn(6, 5, 4, 3) * 2 + 3, torch.randn(6, 5, 4, 3)
    whole = BatchNorm(5).train()
    nn.init.normal_(whole.weight)
    nn.init.normal_(whole.bias)
    torch.save({"x": x, "towards": towards, "sizes": sizes, "state": whole.state_dict()}, tmp_path / "case.pt")
    worker = HELPERS / "batch_norm_worker.py"
    root = str(worker.parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, worker, str(rank), tmp_path / "meeting", tmp_path], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    results = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]

    x.requires_grad_()
    y = whole(x)
    (y * towards).sum().backward()
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([r["y"] for r in results]), y.detach(), **close)
    torch.testing.assert_close(torch.cat([r["x"] for r in results]), x.grad, **close)
    for result in results:
        torch.testing.assert_close(result["weight"], whole.weight.grad, **close)
        torch.testing.assert_close(result["bias"], whole.bias.grad, **close)
        for name, expected in whole.state_dict().items():
            torch.testing.assert_close(result["state"][name], expected, **close)
