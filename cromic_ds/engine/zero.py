"""What DeepSpeed keeps of a parameter on each rank, and its files put back together."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from cromic_ds.run_folder import EMA_FILE

log = logging.getLogger(__name__)


def held(p: torch.nn.Parameter) -> Tensor:
    """What this rank keeps of a parameter: its shard under ZeRO-3, else all of it."""
    return p.ds_tensor.data if hasattr(p, "ds_tensor") else p.data


def release(p: torch.nn.Parameter) -> None:
    """Drop a gathered copy, so that the next forward pass gathers the shards anew."""
    if hasattr(p, "ds_status") and p.ds_status == deepspeed.runtime.zero.partition_parameters.ZeroParamStatus.AVAILABLE:
        p.partition()


def shard_of(whole: Tensor, p: torch.nn.Parameter) -> Tensor:
    """This rank's part of a parameter, cut as ZeRO-3 cuts it: the flattened, padded tensor in equal pieces."""
    if not hasattr(p, "ds_tensor"):
        return whole
    size, rank = p.ds_tensor.numel(), dist.get_rank()
    piece = whole.flatten()[rank * size : (rank + 1) * size]
    return torch.nn.functional.pad(piece, (0, size - piece.numel()))


def full_state_dict(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All weights and buffers in fp32, put together from the ranks' shards; averaged weights where there are any."""
    if list(checkpoint.glob("*optim_states.pt")):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it prints a lot
            state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    else:  # stage 0: every rank holds all weights
        state = torch.load(checkpoint / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=True)["module"]
    if (checkpoint / EMA_FILE).exists():
        state |= load_file(checkpoint / EMA_FILE)
    return {**state, **load_file(checkpoint / "buffers.safetensors")}
