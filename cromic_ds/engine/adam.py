"""The implementations of Adam, and the choice among them."""

import torch

from cromic_ds.engine.operations import CPU_ADAM, announce_compilation, works
from cromic_ds.errors import UserError

# "auto" is the first one that works. DeepSpeed's is as fast as torch's, but compiled at first use with the CUDA toolkit: it is
# for those who ask for it. Its CPU Adam is for offloaded optimizers.
KERNELS = ("apex", "torch_fused", "deepspeed", "torch", "deepspeed_cpu")


def choose_kernel(kernel: str, device: torch.device, offload: bool = False) -> str:
    """Return the name in `KERNELS` to use; "auto" is the first one that works here."""
    if offload:
        if kernel not in ("auto", "deepspeed_cpu"):
            raise UserError(
                f"optim.implementation is {kernel}: with the optimizer offloaded only DeepSpeed's CPU Adam works; choose auto"
            )
        if not available("deepspeed_cpu", device):
            raise UserError(
                "offloading the optimizer needs DeepSpeed's CPU Adam: install g++ and ninja, or do not offload"
            )
        return "deepspeed_cpu"
    usable = [name for name in KERNELS if name != "deepspeed_cpu" and available(name, device)]
    if kernel == "auto":
        return usable[0]
    if kernel not in usable:
        raise UserError(
            f"optim.implementation: {kernel!r} is not usable on {device.type} here: choose auto or {', '.join(usable)}"
        )
    return kernel


def available(kernel: str, device: torch.device) -> bool:
    """Return whether an implementation is installed, or can be compiled, for parameters on a device."""
    if kernel == "torch":
        return True
    if kernel == "torch_fused":
        return device.type in ("cpu", "cuda")
    if kernel == "deepspeed_cpu":
        return works("CPUAdamBuilder")
    if device.type != "cuda":
        return False
    if kernel == "deepspeed":
        return works("FusedAdamBuilder")
    try:
        from apex.optimizers import FusedAdam  # pyright: ignore[reportMissingImports]  # noqa: F401
    except (ImportError, AttributeError, RuntimeError):  # not NVIDIA's apex, or built without its CUDA extensions
        return False
    return True


def build_adam(kernel: str, groups: list[dict], options: dict) -> torch.optim.Optimizer:
    """Return AdamW over parameter groups; `options` are lr, betas and eps."""
    if kernel == "apex":
        from apex.optimizers import FusedAdam  # pyright: ignore[reportMissingImports]

        return FusedAdam(groups, adam_w_mode=True, **options)
    if kernel == "deepspeed":
        from deepspeed.ops.adam import FusedAdam

        return FusedAdam(groups, adam_w_mode=True, **options)
    if kernel == "deepspeed_cpu":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        announce_compilation(CPU_ADAM)
        return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    # Not False: that would also turn off torch's choice of its multi-tensor implementation.
    return torch.optim.AdamW(groups, fused=True if kernel == "torch_fused" else None, **options)
