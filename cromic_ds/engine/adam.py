"""The implementations of Adam, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from cromic_ds.engine.operations import CPU_ADAM, announce_compilation, works
from cromic_ds.errors import UserError


def choose_kernel(kernel: str, device: torch.device, offload: bool = False) -> str:
    """Return the name in `KERNELS` to use; "auto" is the first one of that table that works here."""
    if offload:
        if kernel not in ("auto", "deepspeed_cpu"):
            raise UserError(
                f"optim.implementation is {kernel}: with the optimizer offloaded only DeepSpeed's CPU Adam works; choose auto"
            )
        if not KERNELS["deepspeed_cpu"].available(torch.device("cpu")):
            raise UserError(
                "offloading the optimizer needs DeepSpeed's CPU Adam: install g++ and ninja, or do not offload"
            )
        return "deepspeed_cpu"
    usable = [name for name, k in KERNELS.items() if name != "deepspeed_cpu" and k.available(device)]
    if kernel == "auto":
        return usable[0]
    if kernel not in usable:
        raise UserError(
            f"optim.implementation: {kernel!r} is not usable on {device.type} here: choose auto or {', '.join(usable)}"
        )
    return kernel


def _apex_available(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    try:
        from apex.optimizers import FusedAdam  # pyright: ignore[reportMissingImports]  # noqa: F401
    except (ImportError, AttributeError, RuntimeError):  # not NVIDIA's apex, or built without its CUDA extensions
        return False
    return True


def _apex(groups: list[dict], options: dict) -> torch.optim.Optimizer:
    from apex.optimizers import FusedAdam  # pyright: ignore[reportMissingImports]

    return FusedAdam(groups, adam_w_mode=True, **options)


def _deepspeed_available(device: torch.device) -> bool:
    return device.type == "cuda" and works("FusedAdamBuilder")


def _deepspeed(groups: list[dict], options: dict) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import FusedAdam

    return FusedAdam(groups, adam_w_mode=True, **options)


def _deepspeed_cpu_available(device: torch.device) -> bool:
    return works("CPUAdamBuilder")


def _deepspeed_cpu(groups: list[dict], options: dict) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    announce_compilation(CPU_ADAM)
    return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)


def _torch_fused(groups: list[dict], options: dict) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=True, **options)


def _torch(groups: list[dict], options: dict) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, **options)


class Implementation(NamedTuple):
    available: Callable[[torch.device], bool]
    build: Callable[[list[dict], dict], torch.optim.Optimizer]


KERNELS: dict[str, Implementation] = {
    "apex": Implementation(_apex_available, _apex),
    "torch_fused": Implementation(lambda device: device.type in ("cpu", "cuda"), _torch_fused),
    # As fast as torch's, but compiled at first use with the CUDA toolkit: for those who ask for it.
    "deepspeed": Implementation(_deepspeed_available, _deepspeed),
    "torch": Implementation(lambda device: True, _torch),
    "deepspeed_cpu": Implementation(_deepspeed_cpu_available, _deepspeed_cpu),
}
