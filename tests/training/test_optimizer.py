"""The learning rate to the number; every Adam that runs here against plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cromic_ds.engine.adam import KERNELS, available, choose_kernel
from cromic_ds.errors import UserError
from cromic_ds.training.optimizer import OptimizerSettings, build_optimizer, learning_rate, parameter_groups

DEVICES = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()


def rates(total: int, **settings) -> list[float]:
    return [learning_rate(OptimizerSettings(lr=1.0, **settings), step, total) for step in range(total)]


def test_linear_rises_over_the_warmup_and_falls_to_zero():
    assert rates(10, warmup_fraction=0.2) == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    assert learning_rate(OptimizerSettings(lr=1.0), 100, 100) == 0.0


def test_one_percent_of_a_thousand_steps_is_ten():
    course = rates(1000)
    assert course[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert course[9] == course[10] == 1.0 and course[11] < 1.0


def test_cosine_has_its_half_in_the_middle_and_its_floor_at_the_end():
    course = rates(100, schedule="cosine", warmup_fraction=0.0, min_lr_fraction=0.1)
    assert course[0] == 1.0
    assert course[50] == pytest.approx(0.55)
    assert course[99] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.99)) / 2)


def test_constant_without_warmup_is_constant():
    assert set(rates(50, schedule="constant", warmup_fraction=0.0)) == {1.0}


def test_a_single_step_has_the_full_rate():
    assert rates(1) == [1.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("betas", (0.9, 1.0)), ("clip", 0.0), ("warmup_fraction", 2.0), ("backbone_lr", 0.0)],
)
def test_settings_out_of_range_are_refused(name: str, value):
    with pytest.raises(UserError, match=f"optim.{name}"):
        OptimizerSettings(**{name: value}).check()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.norm = nn.LayerNorm(6)
        self.conv = nn.Conv1d(6, 6, 3)
        self.batch_norm = nn.BatchNorm1d(6)
        self.out = nn.Linear(6, 7)
        self.tied = nn.Linear(6, 7, bias=False)
        self.tied.weight = self.out.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)


def test_weight_decay_spares_biases_norms_embeddings_and_frozen_weights():
    net = Net()
    names = {id(p): n for n, p in net.named_parameters()}
    decayed, exempt = parameter_groups(net, 0.1)
    assert [names[id(p)] for p in decayed["params"]] == ["conv.weight", "out.weight"]
    assert {names[id(p)] for p in exempt["params"]} == {
        "embedding.weight", "norm.weight", "norm.bias", "conv.bias", "batch_norm.weight", "batch_norm.bias", "out.bias",
    }  # fmt: skip
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)


def trained(kernel: str, device: torch.device, weight_decay: float) -> list[torch.Tensor]:
    torch.manual_seed(0)
    net = Net().to(device)
    settings = OptimizerSettings(lr=1e-2, weight_decay=weight_decay, implementation=kernel)
    optimizer, name = build_optimizer(net, settings, offload=kernel == "deepspeed_cpu")
    assert name == kernel
    gradients = torch.Generator().manual_seed(1)  # given, so that rounding is not amplified through a network
    for step in range(20):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, 20)
        for p in net.parameters():
            p.grad = (
                (torch.randn(p.shape, generator=gradients) * 10 ** -(step % 4)).to(device) if p.requires_grad else None
            )
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().cpu() for p in net.parameters()]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize(
    "kernel",  # DeepSpeed compiles its CPU Adam, which takes longer than any other test
    [pytest.param(k, marks=pytest.mark.long if k == "deepspeed_cpu" else ()) for k in KERNELS if k != "torch"],
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_every_kernel_takes_the_same_20_steps_as_plain_torch(kernel: str, device: torch.device, weight_decay: float):
    if not available(kernel, device):
        pytest.skip(f"{kernel} is not installed or not for {device.type}")
    if kernel == "deepspeed_cpu" and device.type != "cpu":
        pytest.skip("CPU Adam updates CPU tensors")
    for ours, plain in zip(trained(kernel, device, weight_decay), trained("torch", device, weight_decay)):
        torch.testing.assert_close(ours, plain, rtol=2e-5, atol=2e-6)


def test_the_best_usable_kernel_is_chosen_and_the_others_refused():
    cpu = torch.device("cpu")
    assert choose_kernel("auto", cpu) == "torch_fused"
    assert choose_kernel("torch", cpu) == "torch"
    with pytest.raises(UserError, match="'apex' is not usable on cpu here: choose auto or torch_fused, torch"):
        choose_kernel("apex", cpu)
    with pytest.raises(UserError, match="only DeepSpeed's CPU Adam works"):
        choose_kernel("torch_fused", cpu, offload=True)
