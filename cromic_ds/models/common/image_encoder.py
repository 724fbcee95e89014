"""From pixels to image tokens with a ResNet, and batch norm in three modes."""

from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from cromic_ds.models.common.config import ResNetCommentConfig
from cromic_ds.models.common.kernels import DEFAULT, Kernels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_imagenet(images: Tensor) -> Tensor:
    """(P, 3, H, W) uint8 -> float32 with ImageNet's mean and deviation. Float input is returned unchanged.

    It works in place on rows of W·3 values, because broadcasting over channels-last pixels would loop over three values at a
    time and each temporary costs page faults (on a CPU 6 times as long). The three operations are torchvision's, in its order,
    so the pixels are equal to the last bit; the gradient of the first convolution depends even on that.
    """
    if images.dtype != torch.uint8:
        return images
    posts, channels, height, width = images.shape
    mean, std = (torch.tensor(v, device=images.device).repeat(width) for v in (IMAGENET_MEAN, IMAGENET_STD))
    rows = images.permute(0, 2, 3, 1).reshape(posts, height, width * channels).float()
    rows.div_(255).sub_(mean).div_(std)
    return rows.view(posts, height, width, channels).permute(0, 3, 1, 2)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over every dimension but the second, in one of the modes of `ResNetCommentConfig.batch_norm`.

    frozen is for a ResNet that starts from trained weights; one that starts from random weights learns much faster with batch
    or sync. sync runs on any device (torch's own SyncBatchNorm on GPUs only).
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
        sums = all_reduce(torch.cat([x32.sum(dims), x32.square().sum(dims), count]))
        total, squares, count = sums.split([self.num_features, self.num_features, 1])
        mean = total / count
        var = (squares / count - mean.square()).clamp_min(0)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            assert self.num_batches_tracked is not None
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
            cast(BatchNorm, child).mode = mode


class ImageEncoder(nn.Module):
    """(P, 3, H, W) -> (P, K, D): transformers' ResNet without pool and classifier, and what a subclass makes of its grid.

    A subclass defines `tokens`, `n_tokens` and, if it wants them, `positions`; it calls `set_batch_norm` for norms of its own.
    """

    kernels: Kernels = DEFAULT
    n_tokens: int  # K

    def __init__(self, config: ResNetCommentConfig):
        super().__init__()
        assert config.resnet is not None  # the config fills it in
        self.channels: int = config.resnet["hidden_sizes"][-1]  # C
        self.positions: nn.Parameter | None = None  # (K, D), added to the tokens
        self.backbone = ResNetModel(ResNetConfig(**config.resnet))
        for module in self.backbone.modules():  # saves one copy of every activation map
            if isinstance(module, nn.ReLU):
                module.inplace = True
        set_batch_norm(self, config.batch_norm)

    def forward(self, images: Tensor) -> Tensor:
        pixels = normalize_imagenet(images).contiguous(memory_format=self.kernels.memory_format)
        tokens = self.tokens(self.backbone(pixels).last_hidden_state)
        return tokens if self.positions is None else tokens + self.positions

    def tokens(self, grid: Tensor) -> Tensor:
        """(P, C, h, w) -> (P, K, D)"""
        raise NotImplementedError

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Set the statistics of every batch norm to those of `images`, layer by layer in one pass. This makes a network that
        starts from random weights trainable with frozen statistics."""
        norms = [m for m in self.modules() if isinstance(m, BatchNorm)]
        before = [(m.mode, m.momentum, m.training) for m in norms]
        for m in norms:
            m.mode, m.momentum, m.training = "batch", 1.0, True
        self(images)
        for m, (mode, momentum, training) in zip(norms, before):
            m.mode, m.momentum, m.training = mode, momentum, training
