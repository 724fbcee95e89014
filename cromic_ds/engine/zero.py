"""What a rank keeps of a parameter under ZeRO, and the unsharded weights of a checkpoint."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from cromic_ds.run_folder import BUFFERS, EMA_FILE


def held(p: torch.nn.Parameter) -> Tensor:
    """Return what this rank keeps of a parameter: its shard under ZeRO-3, otherwise all of it."""
    shard = getattr(p, "ds_tensor", None)
    return p.data if shard is None else shard.data


def drop_gathered(p: Any) -> None:
    """Drop a parameter's gathered copy, so that the next forward pass gathers the shards again."""
    if getattr(p, "ds_status", None) == ZeroParamStatus.AVAILABLE:
        p.partition()


def shard_of(whole: Tensor, p: torch.nn.Parameter) -> Tensor:
    """Return this rank's part of an unsharded parameter, cut as ZeRO-3 does: equal pieces of the flattened, padded tensor."""
    shard = getattr(p, "ds_tensor", None)
    if shard is None:
        return whole
    size, rank = shard.numel(), dist.get_rank()
    piece = whole.flatten()[rank * size : (rank + 1) * size]
    return torch.nn.functional.pad(piece, (0, size - piece.numel()))


def full_state_dict(checkpoint: Path) -> dict[str, Tensor]:
    """Return all weights and buffers of a checkpoint in fp32, unsharded; the averaged weights if it contains any."""
    state: Any
    if list(checkpoint.glob("*optim_states.pt")):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it prints a lot
            state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    else:  # stage 0: one file contains all weights
        state = torch.load(checkpoint / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=True)["module"]
    if (checkpoint / EMA_FILE).exists():
        state |= load_file(checkpoint / EMA_FILE)
    return {**state, **load_file(checkpoint / BUFFERS)}
