"""AdamW in the fastest implementation that is installed, and the learning rate of each step and parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from cromic_ds.engine.adam import build_adam, choose_kernel
from cromic_ds.errors import UserError

if TYPE_CHECKING:
    from cromic_ds.models.registry import CommentModel


@dataclass
class OptimizerSettings:
    """AdamW. With weight decay 0, the default, it is Adam."""

    lr: float = 1e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the denominator of the update."""
    weight_decay: float = 0.0
    """Decoupled weight decay: a step shrinks weights by learning rate × this. Biases, norms and embeddings are exempt."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Schedule of the learning rate after the warm-up."""
    warmup_fraction: float = 0.01
    """Fraction of all steps in which the learning rate rises linearly to its peak."""
    min_lr_fraction: float = 0.0
    """Learning rate at the end of the linear or cosine schedule, as a fraction of the peak."""
    clip: float | None = 1.0
    """Largest norm of the global gradient; null = no clipping."""
    backbone_lr: float | None = None
    """Peak learning rate of the weights that come from a backbone; new weights have `lr`. null = `lr` for all."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer to the one below it; below 1, layers near the input learn more slowly."""
    implementation: Literal["auto", "apex", "torch_fused", "deepspeed", "torch", "deepspeed_cpu"] = "auto"
    """Implementation of Adam; auto = the first that works here, or DeepSpeed's CPU Adam if the optimizer is offloaded."""

    def check(self) -> None:
        checks = {
            "lr": self.lr > 0,
            "betas": all(0 <= b < 1 for b in self.betas),
            "eps": self.eps > 0,
            "weight_decay": self.weight_decay >= 0,
            "warmup_fraction": 0 <= self.warmup_fraction <= 1,
            "min_lr_fraction": 0 <= self.min_lr_fraction <= 1,
            "clip": self.clip is None or self.clip > 0,
            "backbone_lr": self.backbone_lr is None or self.backbone_lr > 0,
            "layer_decay": 0 < self.layer_decay <= 1,
        }
        for name, good in checks.items():
            if not good:
                raise UserError(f"optim.{name} is {getattr(self, name)}: out of range; see --help for its meaning")


def learning_rate(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """Return the learning rate of step 0 ≤ `step` < `total_steps`: linear warm-up from lr / warm-up to lr, then the schedule.

    Linear and cosine schedules reach `min_lr_fraction` at step `total_steps`, one after the last, so that the last step still
    learns something.
    """
    warmup = math.ceil(settings.warmup_fraction * total_steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.lr
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    left = 1 - progress if settings.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return settings.lr * (settings.min_lr_fraction + (1 - settings.min_lr_fraction) * left)


def lr_scales(model: CommentModel, settings: OptimizerSettings, taken: set[str]) -> dict[str, float]:
    """Return each trained parameter's factor of the learning rate; `taken`: the parameters that come from a backbone.

    Raises UserError if `backbone_lr` is given without a backbone.
    """
    if settings.backbone_lr and not taken:
        raise UserError("optim.backbone_lr needs a backbone: name one with --backbone, or leave it out")
    depths = {name: model.depth(name) for name, p in model.named_parameters() if p.requires_grad}
    top = max(depths.values(), default=0)
    backbone = (settings.backbone_lr or settings.lr) / settings.lr
    return {n: settings.layer_decay ** (top - depth) * (backbone if n in taken else 1.0) for n, depth in depths.items()}


def parameter_groups(model: nn.Module, weight_decay: float, scales: Mapping[str, float] | None = None) -> list[dict]:
    """Return two groups, with and without weight decay, for each factor of the learning rate; without frozen parameters.

    There are two groups even if the weight decay is 0, so that a resume with another weight decay can load the optimizer state.
    """
    groups: dict[float, tuple[list, list]] = {}
    seen = set()
    for prefix, module in model.named_modules():
        without_decay = isinstance(module, nn.Embedding) or "Norm" in type(module).__name__
        for name, p in module.named_parameters(prefix, recurse=False):
            if p.requires_grad and id(p) not in seen:
                seen.add(id(p))
                decayed, exempt = groups.setdefault((scales or {}).get(name, 1.0), ([], []))
                dimensions = len(getattr(p, "ds_shape", p.shape))  # ZeRO-3 flattens what it has partitioned
                (exempt if without_decay or dimensions < 2 else decayed).append(p)
    return [
        {"params": params, "weight_decay": decay, "lr_scale": scale}
        for scale, (decayed, exempt) in sorted(groups.items())
        for params, decay in ((decayed, weight_decay), (exempt, 0.0))
        if params
    ]


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, offload: bool = False, scales: Mapping[str, float] | None = None
) -> tuple[torch.optim.Optimizer, str]:
    """Return the optimizer and the name of its implementation. Raise UserError if it is not installed or not for this device.

    With `offload`, the optimizer state is in CPU memory (ZeRO-Offload), so DeepSpeed's CPU Adam is used on every device.
    `scales` are factors of the learning rate by parameter name (`lr_scales`).
    """
    groups = parameter_groups(model, settings.weight_decay, scales)
    device = next((p.device for group in groups for p in group["params"]), torch.device("cpu"))
    name = choose_kernel(settings.implementation, device, offload)
    return build_adam(name, groups, {"lr": settings.lr, "betas": tuple(settings.betas), "eps": settings.eps}), name
