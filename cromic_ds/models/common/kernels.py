"""Fused kernels, chosen for each operation from what is installed, and plain torch otherwise.

Each table lists an operation's implementations from the most to the least preferred, with the condition under which it can run.
`select` turns the settings into functions and `install` gives them to a model's modules, so that the choice is made in one
place and is in the log. `engine/adam.py` chooses the implementation of Adam.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from cromic_ds.errors import UserError, nearest

KernelChoice = Literal["auto", "torch"]
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class Kernels(NamedTuple):
    """The chosen functions, the layout of the convolutions' activations, and the names of the choices for the log."""

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


# ---- layer norm: (x, weight, bias, eps) -> x's shape; statistics in fp32


def torch_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def apex_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine  # pyright: ignore[reportMissingImports]

    return fused_layer_norm_affine(x, weight, bias, weight.shape, eps)


def liger_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # pyright: ignore[reportMissingImports]

    return LigerLayerNormFunction.apply(x, weight, bias, eps)


# ---- output layer + cross-entropy: (hidden (M, D), weight (V, D), bias (V,), target (M,), label smoothing) -> Σ NLL.
# A target of IGNORE adds nothing. The result is a sum, because the loop divides by the global batch's token count.

IGNORE = -100


def torch_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, smoothing: float = 0.0
) -> Tensor:
    logits = F.linear(hidden, weight, bias).float()
    return F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)


def chunked_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Compute the logits of 4,096 tokens at a time and again in the backward pass: at a vocabulary of 21,128 the fp32 logits
    of a step are by far its largest tensor."""
    total = hidden.new_zeros((), dtype=torch.float32)
    for h, t in zip(hidden.split(4096), target.split(4096)):
        total = total + checkpoint(torch_linear_cross_entropy, h, weight, bias, t, smoothing, use_reentrant=False)
    return total


def liger_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, smoothing: float = 0.0
) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy  # pyright: ignore[reportMissingImports]

    if torch.is_autocast_enabled(hidden.device.type):  # the kernel is not on autocast's list of operations
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return liger_fused_linear_cross_entropy(
        hidden, weight, target, bias=bias, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing
    )


# ---- attention: torch's scaled_dot_product_attention, with its own choice of a kernel or with a given one

FEW_QUERIES = 8


def short_or_fused_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False
) -> Tensor:
    """Use torch's fused kernel, but plain products for the few queries of a decoding step in bf16 on a CPU: there the fused
    kernel takes 2 to 5 times as long (10 posts of 76 tokens, one query: 0.79 ms against 0.15 ms)."""
    short = q.device.type == "cpu" and q.dtype is torch.bfloat16 and q.shape[2] <= FEW_QUERIES
    if not short or dropout_p or (is_causal and q.shape[2] > 1):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)).float()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return torch.matmul(scores.softmax(-1).to(v.dtype), v)


def held_to(backend: SDPBackend) -> Callable[..., Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        # Where the kernel cannot take a mask (flash on GPUs), torch uses the next one.
        with sdpa_kernel([backend, SDPBackend.MATH], set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, **options)

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
        "efficient": Choice(held_to(SDPBackend.EFFICIENT_ATTENTION), lambda device: device.type == "cuda"),
        "math": Choice(held_to(SDPBackend.MATH), anywhere),
    },
}
PLAIN = {"layer_norm": "torch", "linear_cross_entropy": "torch", "attention": "sdpa"}


def select(device: torch.device, kernels: KernelChoice = "auto", debug: Mapping[str, str] | None = None) -> Kernels:
    """Choose one implementation of each operation for `device`.

    Args:
        kernels: auto, the first of each table that works there; or torch, plain PyTorch.
        debug: names of single implementations by operation, and of a `memory_format`: channels_last (faster on CPU and GPU)
            or contiguous (the published code's; the order of summation differs in the last digits).

    Raises UserError for an unknown operation or name, and for an implementation that cannot run there.
    """
    wanted = dict(debug or {})
    for what in wanted:
        _check_known(what, (*TABLES, "memory_format"), "operation")
    layout = wanted.get("memory_format", "channels_last")
    _check_known(layout, MEMORY_FORMATS, "memory_format")
    names = {}
    for what, table in TABLES.items():
        usable = [name for name, choice in table.items() if choice.works(device)]
        name = wanted.get(what, usable[0] if kernels == "auto" else PLAIN[what])
        _check_known(name, table, what)
        if name not in usable:
            cannot = f"{what} {name!r} cannot run on {device.type} with what is installed here"
            raise UserError(f"kernels_debug: {cannot}; usable: {', '.join(usable)}")
        names[what] = name
    functions = {what: TABLES[what][name].function for what, name in names.items()}
    return Kernels(**functions, memory_format=MEMORY_FORMATS[layout], names=names | {"memory_format": layout})


def _check_known(name: str, known: Iterable[str], what: str) -> None:
    if name not in known:
        raise UserError(f"kernels_debug: unknown {what} {name!r}{nearest(name, known)}; one of {', '.join(known)}")


# What a model computes with before `install`: plain torch in the published code's order of summation.
DEFAULT = select(torch.device("cpu"), "torch", {"memory_format": "contiguous"})


def install(model: nn.Module, kernels: Kernels) -> None:
    """Give the chosen functions to every module of the model that has an attribute `kernels`."""
    for module in model.modules():
        if isinstance(getattr(module, "kernels", None), Kernels):
            cast(Any, module).kernels = kernels


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` whose forward pass is the chosen kernel."""

    kernels: Kernels = DEFAULT

    def forward(self, x: Tensor) -> Tensor:
        return self.kernels.layer_norm(x, self.weight, self.bias, self.eps)
