"""Pixels to image tokens: transformers' ResNet without pool and classifier, projected to the model's width."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from cromic_ds.models.common.kernels import DEFAULT, Kernels, LayerNorm

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BATCH_NORM_MODES = ("frozen", "batch", "sync")


def normalize(images: Tensor) -> Tensor:
    """(P, 3, H, W) uint8 -> float32 with ImageNet's mean and deviation. Float input passes unchanged.

    Works in place on rows of W·3 values: broadcasting over channels-last pixels would loop over three values at a time,
    and each temporary costs page faults (on a CPU 6 times as long). The three operations are torchvision's, in its
    order, so the pixels are equal to the last bit: the first convolution's gradient feels even that.
    """
    if images.dtype != torch.uint8:
        return images
    posts, channels, height, width = images.shape
    mean, std = (torch.tensor(v, device=images.device).repeat(width) for v in (IMAGENET_MEAN, IMAGENET_STD))
    rows = images.permute(0, 2, 3, 1).reshape(posts, height, width * channels).float()
    rows.div_(255).sub_(mean).div_(std)
    return rows.view(posts, height, width, channels).permute(0, 3, 1, 2)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over every dimension but the second, with a `mode`:

    frozen: the statistics never change, training included: the only mode in which a step does not depend on how the
    global batch is split, and meant for a ResNet that starts from trained weights; batch: each micro-batch's own
    statistics; sync: each micro-batch's over all ranks, on any device (torch's own SyncBatchNorm runs on GPUs only).
    A ResNet that starts from random weights learns much faster with batch or sync.
    """

    mode = "batch"

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "frozen":
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if self.mode == "sync" and self.training and dist.is_initialized() and dist.get_world_size() > 1:
            return self.over_all_ranks(x)
        return super().forward(x)

    def over_all_ranks(self, x: Tensor) -> Tensor:
        from torch.distributed.nn.functional import all_reduce  # differentiable: gradients are summed over the ranks

        x32 = x.float()
        dims = [d for d in range(x.dim()) if d != 1]
        count = x32.new_full((1,), x.numel() / self.num_features)
        total, squares, count = all_reduce(torch.cat([x32.sum(dims), x32.square().sum(dims), count])).split(
            [self.num_features, self.num_features, 1]
        )
        mean = total / count
        var = (squares / count - mean.square()).clamp_min(0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(var + self.eps)
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return (x32 * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(x.dtype)


def set_batch_norm(module: nn.Module, mode: str) -> None:
    """Give every batch norm at or below `module` the behavior of `mode` (see `BatchNorm`)."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.__class__ = BatchNorm
            child.mode = mode


class ImageEncoder(nn.Module):
    """(P, 3, H, W) -> (P, K, D): a grid of K image tokens.

    CroMIC-CMT's head: 1×1 convolution, 2×2 max-pool with stride 1 (7×7 → 6×6), batch norm over the width, then each token
    L2-normalized (`norm="l2"`, the published way) or layer-normed (`norm="layer"`); learned positions if asked for.
    """

    kernels: Kernels = DEFAULT

    def __init__(self, resnet: dict, width: int, image_size: int, norm: str, positions: bool, batch_norm: str):
        super().__init__()
        self.backbone = ResNetModel(ResNetConfig(**resnet))
        self.project = nn.Conv2d(resnet["hidden_sizes"][-1], width, 1)
        self.batch_norm = BatchNorm(width)
        self.norm = LayerNorm(width) if norm == "layer" else None
        self.n_tokens = grid_side(image_size) ** 2
        self.positions = nn.Parameter(torch.zeros(self.n_tokens, width)) if positions else None
        for module in self.backbone.modules():  # saves one copy of every activation map
            if isinstance(module, nn.ReLU):
                module.inplace = True
        set_batch_norm(self, batch_norm)

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Set the statistics of every batch norm to those of `images`, layer by layer in one pass: what makes a network
        that starts from random weights trainable with frozen statistics."""
        norms = [m for m in self.modules() if isinstance(m, BatchNorm)]
        before = [(m.mode, m.momentum, m.training) for m in norms]
        for m in norms:
            m.mode, m.momentum, m.training = "batch", 1.0, True
        self(images)
        for m, (mode, momentum, training) in zip(norms, before):
            m.mode, m.momentum, m.training = mode, momentum, training

    def forward(self, images: Tensor) -> Tensor:
        pixels = normalize(images).contiguous(memory_format=self.kernels.memory_format)
        grid = self.backbone(pixels).last_hidden_state
        grid = F.max_pool2d(self.project(grid), 2, stride=1)
        tokens = grid.flatten(2).transpose(1, 2)  # (P, K, D)
        tokens = self.batch_norm(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        tokens = self.norm(tokens) if self.norm is not None else F.normalize(tokens.float(), dim=-1)
        return tokens if self.positions is None else tokens + self.positions


def grid_side(image_size: int) -> int:
    """Tokens a side for square images: ResNet halves five times, rounding up; the 2×2 pool takes one more."""
    side = image_size
    for _ in range(5):
        side = (side + 1) // 2
    return side - 1
