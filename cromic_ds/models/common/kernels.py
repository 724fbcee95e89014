"""Fused kernels, picked per operation from what is installed, and plain torch otherwise.

Each table lists an operation's implementations from the most to the least preferred, with the condition under which it
can run. `select` turns the settings into functions and `install` hands them to a model's modules, so that which kernel
runs is in one place and in the log. The fused optimizers are chosen the same way in `training/optimizer.py`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cromic_ds.errors import UserError, nearest


@dataclass
class KernelSettings:
    """Which implementation computes each operation."""

    layer_norm: str = "auto"
    """Layer norm: auto, apex, liger or torch."""
    linear_cross_entropy: str = "auto"
    """Output layer + cross-entropy: auto, liger, torch_chunked (logits in pieces, recomputed in the backward pass) or
    torch (all logits at once, in fp32)."""
    attention: str = "auto"
    """Attention: auto (torch chooses among its fused kernels), flash, efficient or math."""
    optimizer: str = "auto"
    """Adam: auto, apex, deepspeed, torch_fused or torch."""
    memory_format: str = "channels_last"
    """Layout of the convolutions' activations: channels_last (faster on CPU and GPU) or contiguous (the published
    code's; the order of summation differs in the last digits)."""


class Kernels(NamedTuple):
    """The chosen functions, and their names for the log."""

    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    linear_cross_entropy: Callable[[Tensor, Tensor, Tensor | None, Tensor, float], Tensor]
    attention: Callable[..., Tensor]
    memory_format: torch.memory_format
    names: dict[str, str]


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def on_gpu_with(module: str) -> Callable[[torch.device], bool]:
    return lambda device: device.type == "cuda" and installed(module)


def anywhere(device: torch.device) -> bool:
    return True


def on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


# ---- layer norm: (x, weight, bias, eps) -> x's shape; statistics in fp32


def torch_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def apex_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    return fused_layer_norm_affine(x, weight, bias, weight.shape, eps)


def liger_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    return LigerLayerNormFunction.apply(x, weight, bias, eps)


# ---- output layer + cross-entropy: (hidden (M, D), weight (V, D), bias (V,), target (M,), label smoothing) -> Σ NLL.
# A target of IGNORE adds nothing. The sum, not the mean: the loop divides by the global batch's token count.

IGNORE = -100


def torch_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, smoothing: float = 0.0
) -> Tensor:
    logits = F.linear(hidden, weight, bias).float()
    return F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)


def chunked_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Logits of 4,096 tokens at a time, thrown away and recomputed in the backward pass: at a vocabulary of 21,128 the
    fp32 logits of a step are by far its largest tensor."""
    total = hidden.new_zeros((), dtype=torch.float32)
    for h, t in zip(hidden.split(4096), target.split(4096)):
        total = total + torch.utils.checkpoint.checkpoint(
            torch_linear_cross_entropy, h, weight, bias, t, smoothing, use_reentrant=False
        )
    return total


def liger_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, smoothing: float = 0.0
) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    if torch.is_autocast_enabled(hidden.device.type):  # the kernel is not on autocast's list of operations
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return liger_fused_linear_cross_entropy(
        hidden, weight, target, bias=bias, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing
    )


# ---- attention: torch's scaled_dot_product_attention, free or held to one of its kernels

FEW_QUERIES = 8


def short_or_fused_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False
) -> Tensor:
    """torch's fused kernel, but plain products for the few queries of a decoding step in bf16 on a CPU: there the fused
    kernel takes 2 to 5 times as long (10 posts of 76 tokens, one query: 0.79 ms against 0.15 ms)."""
    short = q.device.type == "cpu" and q.dtype is torch.bfloat16 and q.shape[2] <= FEW_QUERIES
    if not short or dropout_p or (is_causal and q.shape[2] > 1):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)).float()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return torch.matmul(scores.softmax(-1).to(v.dtype), v)


def held_to(backend: SDPBackend) -> Callable[..., Tensor]:
    def attention(*args, **kwargs) -> Tensor:
        # A kernel that cannot take a mask (flash on GPUs) leaves that call to the next best.
        with sdpa_kernel([backend, SDPBackend.MATH], set_priority=True):
            return F.scaled_dot_product_attention(*args, **kwargs)

    return attention


class Choice(NamedTuple):
    function: Callable
    works: Callable[[torch.device], bool]


TABLES: dict[str, dict[str, Choice]] = {
    "layer_norm": {
        "apex": Choice(apex_layer_norm, on_gpu_with("apex.normalization")),
        "liger": Choice(liger_layer_norm, on_gpu_with("liger_kernel")),
        "torch": Choice(torch_layer_norm, anywhere),
    },
    "linear_cross_entropy": {
        "liger": Choice(liger_linear_cross_entropy, on_gpu_with("liger_kernel")),
        "torch": Choice(torch_linear_cross_entropy, anywhere),
        "torch_chunked": Choice(chunked_linear_cross_entropy, anywhere),
    },
    "attention": {
        "sdpa": Choice(short_or_fused_attention, anywhere),
        "flash": Choice(held_to(SDPBackend.FLASH_ATTENTION), anywhere),
        "efficient": Choice(held_to(SDPBackend.EFFICIENT_ATTENTION), on_gpu),
        "math": Choice(held_to(SDPBackend.MATH), anywhere),
    },
}


def choose(table: dict[str, Choice], wanted: str, device: torch.device, what: str) -> str:
    """The name of the implementation to use: the first that works for `auto`, else the wanted one.

    Raises:
        UserError: an unknown name, or one that cannot run here.
    """
    usable = [name for name, choice in table.items() if choice.works(device)]
    if wanted == "auto":
        return usable[0]
    if wanted not in table:
        raise UserError(f"kernels.{what}: unknown kernel {wanted!r}{nearest(wanted, table)}; one of {', '.join(table)}")
    if wanted not in usable:
        raise UserError(
            f"kernels.{what}: {wanted!r} cannot run on {device.type} with what is installed here; usable: {', '.join(usable)}"
        )
    return wanted


def select(settings: KernelSettings, device: torch.device) -> Kernels:
    """Pick one implementation per operation for `device`."""
    names = {what: choose(table, getattr(settings, what), device, what) for what, table in TABLES.items()}
    functions = {what: TABLES[what][name].function for what, name in names.items()}
    formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    if settings.memory_format not in formats:
        raise UserError(f"kernels.memory_format: {settings.memory_format!r}; one of {', '.join(formats)}")
    names["memory_format"] = settings.memory_format
    return Kernels(**functions, memory_format=formats[settings.memory_format], names=names)


# What a model computes with before `install`: plain torch in the published code's order of summation.
DEFAULT = select(
    KernelSettings(layer_norm="torch", linear_cross_entropy="torch", attention="sdpa", memory_format="contiguous"),
    torch.device("cpu"),
)


def install(model: nn.Module, kernels: Kernels) -> None:
    """Hand the chosen functions to every module of the model that has a `kernels` attribute."""
    for module in model.modules():
        if isinstance(getattr(module, "kernels", None), Kernels):
            module.kernels = kernels


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` whose forward pass is the chosen kernel."""

    kernels: Kernels = DEFAULT

    def forward(self, x: Tensor) -> Tensor:
        return self.kernels.layer_norm(x, self.weight, self.bias, self.eps)
