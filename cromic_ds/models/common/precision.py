"""The number format that a run computes in. Parameters, losses and norms are always fp32; autocast decides about the rest."""

from typing import Literal

import torch

from cromic_ds.errors import UserError

Precision = Literal["auto", "bf16", "fp16", "fp32"]

AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}


def choose_precision(wanted: str, device: torch.device | str) -> str:
    """Return `wanted`, or for "auto" the fastest format that the device computes natively: "bf16", "fp16" or "fp32".

    That is bf16 on GPUs from compute capability 8.0 and on CPUs with AMX or AVX512-BF16, fp16 on older GPUs, fp32 elsewhere.
    Raises UserError for an unknown format, fp16 on a CPU (which has no fp16 arithmetic), and bf16 on a GPU that emulates it.
    """
    if wanted not in ("auto", "bf16", "fp16", "fp32"):
        raise UserError(f"precision is {wanted!r}: choose auto, bf16, fp16 or fp32")
    kind = torch.device(device).type
    if kind == "cpu":
        if wanted == "fp16":
            raise UserError("precision fp16 on a CPU: choose bf16 or fp32, or run on a GPU")
        return wanted if wanted != "auto" else ("bf16" if cpu_has_bf16() else "fp32")
    native = kind != "cuda" or not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)
    if wanted == "bf16" and not native:
        raise UserError("precision bf16 on a GPU older than compute capability 8.0: choose fp16, fp32 or auto")
    if wanted != "auto":
        return wanted
    return "bf16" if native else "fp16"


def cpu_has_bf16() -> bool:
    """Return whether this CPU has instructions for matrix products in bf16, which are then faster than fp32."""
    flags = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, flag, bool)() for flag in flags)
